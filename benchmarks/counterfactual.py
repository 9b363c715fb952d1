"""Stimulated cells of a type that was never seen stimulated: predicted beside real, and beside three simple baselines.

On the interferon data of Kang et al. (Nature Biotechnology 2018), the stimulated cells of one type are left out, all
tools see the rest, and predict them from the type's control cells. Mean and variance of log(1 + 10^4 share) per gene
over the predicted cells are compared with those of the real ones: R^2 = 1 - residual sum of squares / total sum of
squares, over all genes and over the 100 whose mean differs most between the type's real control and stimulated cells.

    pip install .
    SCVAE_EXT_DATA=/path/to/data python benchmarks/counterfactual.py         # an hour on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/counterfactual.py --datasets kang_ifnb_muscat1556 --seeds 0
    python benchmarks/counterfactual.py --table                               # only print what is there
    python benchmarks/counterfactual.py --smoke                               # tiny synthetic data, some seconds

The baselines: the type's control cells as they are ("control"); the same plus the mean difference between stimulated
and control cells of the other types ("mean shift"); and scGen's latent arithmetic ("latent arithmetic": Lotfollahi,
Wolf and Theis, Nature Methods 2019), here with the same networks and likelihood as ours but no covariate: the
difference between the mean latent states of the other types' stimulated and control cells is added to the control
cells' states, and counts are drawn from the decoder. "scvae-ext, shifted" is ``shift_within="cell_type"``, which uses
the labels as the two latter baselines do.
"""

import argparse
import json
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from labelled_datasets import LABELLED

RESULTS = Path(__file__).parent / "results" / "counterfactual.jsonl"
DATASETS = ("kang_ifnb_muscat1556", "kang_ifnb_2000")
TOOLS = ("control", "mean shift", "latent arithmetic", "scvae-ext", "scvae-ext, shifted")
FEWEST_CELLS = 50
N_TOP = 100
FIGURES = ("mean_all", "mean_top", "variance_all", "variance_top")
STEPS_OF_SMOKE = 100
# The model of the last row, which the shifted prediction shares.
LAST_MODEL: dict[str, object] = {}


def log_normalised(counts) -> np.ndarray:
    """Return log(1 + 10^4 share) of each cell and gene."""
    dense = counts.toarray() if hasattr(counts, "toarray") else np.asarray(counts)
    return np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True).clip(1))


def cells_of(adata: ad.AnnData, cell_type: str, condition: str) -> np.ndarray:
    """Return which cells are of a type and condition."""
    return ((adata.obs["cell_type"] == cell_type) & (adata.obs["condition"] == condition)).to_numpy()


def train(adata: ad.AnnData, seed: int, smoke: bool, **setup):
    """Train SCVAE by its defaults."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata, **setup)
    model = sv.SCVAE(adata, seed=seed)
    steps = STEPS_OF_SMOKE if smoke else None
    model.train(accelerator="cpu", enable_progress_bar=False, seed=seed, max_steps=steps)
    return model


def by_latent_arithmetic(adata: ad.AnnData, cell_type: str, others: list[str], seed: int, smoke: bool) -> np.ndarray:
    """Add the other types' mean difference in latent states, decode, draw counts."""
    import torch

    model = train(adata, seed, smoke)
    latent = model.get_latent_representation(key_added=None)
    shift = np.mean(
        [latent[cells_of(adata, t, "stim")].mean(0) - latent[cells_of(adata, t, "ctrl")].mean(0) for t in others],
        axis=0,
    )
    cells = cells_of(adata, cell_type, "ctrl")
    state = torch.from_numpy((latent[cells] + shift).astype(np.float32))
    depth = torch.from_numpy(np.asarray(adata.X[cells].sum(axis=1), dtype=np.float32).ravel())
    nobody = torch.zeros(len(state), dtype=torch.int64)
    module = model.module
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        hidden = module.decoder(state, torch.zeros(len(state), 0))
        return module.likelihood(hidden, depth, nobody, nobody).sample().numpy()


def predict(tool: str, adata: ad.AnnData, cell_type: str, others: list[str], seed: int, smoke: bool) -> np.ndarray:
    """Return predicted stimulated cells of a type, log-normalised."""
    cells = cells_of(adata, cell_type, "ctrl")
    control = log_normalised(adata.X[cells])
    if tool == "control":
        return control
    if tool == "mean shift":
        means = [
            [log_normalised(adata.X[cells_of(adata, t, condition)]).mean(0) for t in others]
            for condition in ("stim", "ctrl")
        ]
        return control + np.mean(means[0], axis=0) - np.mean(means[1], axis=0)
    if tool == "latent arithmetic":
        return log_normalised(by_latent_arithmetic(adata, cell_type, others, seed, smoke))
    if tool == "scvae-ext" or LAST_MODEL.get("of") != (adata.n_obs, cell_type, seed):
        model = train(adata, seed, smoke, batch_key="condition")
        # Counts alone are scored: their draws need no calibrated intervals.
        model.calibrate_intervals(train_options={"accelerator": "cpu", "max_steps": 1})
        LAST_MODEL.update(of=(adata.n_obs, cell_type, seed), model=model)
    model = LAST_MODEL["model"]
    within = "cell_type" if tool == "scvae-ext, shifted" else None
    found = model.counterfactual({"condition": "stim"}, indices=cells, seed=seed, key_added=None, shift_within=within)
    return log_normalised(found.counts[0])


def r_squared(predicted: np.ndarray, real: np.ndarray) -> float:
    """Return the share of the variance between genes that a prediction explains."""
    return float(1 - np.square(predicted - real).sum() / np.square(real - real.mean()).sum())


def scores_of(predicted: np.ndarray, control: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Compare mean and variance of each gene."""
    top = np.argsort(-np.abs(real.mean(0) - control.mean(0)))[:N_TOP]
    return {
        "mean_all": r_squared(predicted.mean(0), real.mean(0)),
        "mean_top": r_squared(predicted.mean(0)[top], real.mean(0)[top]),
        "variance_all": r_squared(predicted.var(0), real.var(0)),
        "variance_top": r_squared(predicted.var(0)[top], real.var(0)[top]),
    }


def load(name: str, smoke: bool) -> ad.AnnData:
    """Return counts with columns ``cell_type`` and ``condition``."""
    if not smoke:
        adata = LABELLED[name].load()
        adata.obs["condition"] = adata.obs["condition"].astype(str)
    else:
        import scvae_ext as sv

        adata = sv.datasets.synthetic_counts(900, 150, n_types=3, n_batches=2)
        adata.obs["condition"] = adata.obs["batch"].map({"batch_0": "ctrl", "batch_1": "stim"}).astype(str)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str)
    return adata


def large_types(adata: ad.AnnData) -> list[str]:
    """Return the types with enough cells under either condition to compare."""
    sizes = adata.obs.groupby(["cell_type", "condition"], observed=True).size().unstack(fill_value=0)
    return [str(name) for name in sizes.index[(sizes >= FEWEST_CELLS).all(axis=1)]]


def run(tool: str, name: str, cell_type: str, seed: int, smoke: bool = False) -> dict[str, object]:
    """Leave the stimulated cells of one type out, predict them, and return a row of figures."""
    everything = load(name, smoke)
    left_out = cells_of(everything, cell_type, "stim")
    seen, real = everything[~left_out].copy(), log_normalised(everything[left_out].X)
    others = [other for other in large_types(everything) if other != cell_type]
    predicted = predict(tool, seen, cell_type, others, seed, smoke)
    control = log_normalised(seen[cells_of(seen, cell_type, "ctrl")].X)
    return {
        "dataset": name,
        "n_vars": everything.n_vars,
        "cell_type": cell_type,
        "seed": seed,
        "tool": tool,
        **scores_of(predicted, control, real),
        "version": version("scvae-ext"),
        "python": platform.python_version(),
    }


def finished(results: Path) -> pd.DataFrame:
    """Return the rows of the results file."""
    return pd.read_json(results, lines=True) if results.exists() else pd.DataFrame()


def table(rows: pd.DataFrame) -> str:
    """Return mean and variance R^2 of each type left out, over all genes and the top 100, means over seeds."""
    if not len(rows):
        return "no rows yet"
    lines = [
        "| dataset | left out | tool | mean, all | mean, top 100 | variance, all | variance, top 100 |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for (dataset, cell_type), of_type in rows.groupby(["dataset", "cell_type"]):
        means = of_type.groupby("tool")[list(FIGURES)].mean()
        means = means.reindex([tool for tool in TOOLS if tool in means.index])
        for tool, row in means.iterrows():
            cells = [f"**{row[f]:.3f}**" if row[f] == means[f].max() else f"{row[f]:.3f}" for f in FIGURES]
            lines.append(f"| {dataset} | {cell_type} | {tool} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="run on tiny synthetic data")
    arguments = parser.parse_args()
    if arguments.smoke:
        print(table(pd.DataFrame([run(tool, "synthetic", "type_0", 0, smoke=True) for tool in arguments.tools])))
        return
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for cell_type in large_types(load(name, False)):
                    for tool in arguments.tools:
                        rows, wanted = finished(arguments.results), (tool, name, cell_type, seed)
                        keys = ["tool", "dataset", "cell_type", "seed"]
                        if len(rows) and (rows[keys] == wanted).all(axis=1).any():
                            continue
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")
                            row = run(*wanted)
                        print(json.dumps(row), flush=True)
                        arguments.results.parent.mkdir(exist_ok=True)
                        with arguments.results.open("a") as stream:
                            stream.write(json.dumps(row) + "\n")
    print(table(finished(arguments.results)))


if __name__ == "__main__":
    main()
