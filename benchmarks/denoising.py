"""Molecular cross-validation of denoised expression, beside scvi-tools, MAGIC-like smoothing, PCA and raw counts.

Each count is split in two by a fair coin for each molecule. Tools see one half; what they say about a cell's
expression, times its number of molecules in that half, predicts the other half, whose counts are independent given the
expression (Batson, Royer and Webber, bioRxiv 786269, 2019). Two scores, both of
which the true expression minimises: the mean Poisson deviance of the other half, and the squared error of its counts,
each gene's divided by its mean count. Every prediction is mixed with 1 % of the mean expression of all cells, without
which a zero that meets a count costs infinitely much.

``--coverage`` asks another question, of scvae_ext alone: how many of the true values, known because counts are
simulated, lie in intervals that are to hold 50, 80, 90 and 95 % of them.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/denoising.py              # everything, hours on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/denoising.py --datasets pbmc3k --tools scvae-ext knn raw
    python benchmarks/denoising.py --coverage                                 # of intervals, on simulated counts
    python benchmarks/denoising.py --table                                    # only print what is there
    python benchmarks/denoising.py --smoke                                    # tiny synthetic data, some seconds
"""

import argparse
import json
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from labelled_datasets import LABELLED

RESULTS = Path(__file__).parent / "results" / "denoising.jsonl"
MIXED_IN = 0.01
PACKAGES = {"scvae-ext": "scvae-ext", "scvae-ext, given counts": "scvae-ext", "scvi-tools": "scvi-tools"}
PCA_COMPONENTS = (5, 10, 20, 50)
TOOLS = ("scvae-ext", "scvae-ext, given counts", "scvi-tools", "knn", "pca", "raw", "mean")
STEPS_OF_SMOKE = 50
COVERAGE_RESULTS = RESULTS.with_name("coverage.jsonl")
LEVELS = (0.5, 0.8, 0.9, 0.95)
# Arguments of synthetic_counts, and likelihood of the model, which is wrong in the last.
SIMULATED = {
    "two batches": ({"n_cells": 1490, "n_genes": 300, "n_batches": 2}, "nb"),
    "few cells": ({"n_cells": 400, "n_genes": 100, "library_size": 2000}, "nb"),
    "Poisson": ({"n_cells": 600, "n_genes": 200, "library_size": 500, "likelihood": "poisson"}, "poisson"),
    "Poisson model of overdispersed counts": ({"n_cells": 600, "n_genes": 200, "library_size": 500}, "poisson"),
}


def split_molecules(counts: sp.csr_matrix, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Give each molecule to one half or the other."""
    first = counts.copy()
    first.data = np.random.default_rng(seed).binomial(counts.data.astype(np.int64), 0.5).astype(np.float32)
    second = (counts - first).tocsr()
    for half in (first, second):
        half.eliminate_zeros()
    return first, second


def shares(counts: sp.csr_matrix) -> np.ndarray:
    """Return what each gene has of a cell's molecules."""
    dense = counts.toarray().astype(np.float64)
    return dense / dense.sum(axis=1, keepdims=True)


def by_scvae_ext(half: ad.AnnData, batch_key: str | None, seed: int, smoke: bool, given: str) -> np.ndarray:
    """Train scvae_ext by its defaults; expression of the latent state, or given the cell's own counts as well."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(half, batch_key=batch_key)
    model = sv.SCVAE(half, seed=seed)
    model.train(accelerator="cpu", enable_progress_bar=False, seed=seed, max_steps=STEPS_OF_SMOKE if smoke else None)
    return model.get_normalized_expression(return_numpy=True, key_added=None, given=given)


def by_scvi(half: ad.AnnData, batch_key: str | None, seed: int, smoke: bool) -> np.ndarray:
    """Train scvi-tools by its defaults, with the same likelihood."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(half, batch_key=batch_key)
    model = scvi.model.SCVI(half, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False, max_epochs=2 if smoke else None)
    return model.get_normalized_expression(n_samples=10, return_mean=True, return_numpy=True)


def principal_components(half: sp.csr_matrix, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cells in the leading components of log(1 + 10^4 share), and the values rebuilt from them."""
    from sklearn.decomposition import PCA

    values = np.log1p(1e4 * shares(half))
    pca = PCA(min(n, *(size - 1 for size in values.shape)), random_state=seed)
    inner = pca.fit_transform(values)
    return inner, pca.inverse_transform(inner)


def by_knn(half: ad.AnnData, seed: int, knn: int = 5, t: int = 3) -> np.ndarray:
    """Average cells over a diffusion of three steps with an adaptive kernel, the defaults of MAGIC (Cell 2018)."""
    from sklearn.neighbors import NearestNeighbors

    inner, _ = principal_components(half.X, 50, seed)
    n_neighbours = min(3 * knn, half.n_obs - 1)
    distance, neighbour = NearestNeighbors(n_neighbors=n_neighbours + 1).fit(inner).kneighbors()
    affinity = np.exp(-distance / distance[:, [min(knn, n_neighbours) - 1]].clip(1e-12))
    rows = np.repeat(np.arange(half.n_obs), neighbour.shape[1])
    kernel = sp.csr_matrix((affinity.ravel(), (rows, neighbour.ravel())), shape=(half.n_obs,) * 2)
    kernel = (kernel + kernel.T) / 2 + sp.identity(half.n_obs)
    step = sp.diags(1 / np.asarray(kernel.sum(axis=1)).ravel()) @ kernel
    smoothed = shares(half.X)
    for _ in range(t):
        smoothed = step @ smoothed
    return smoothed


def scores_of(expression: np.ndarray, first: sp.csr_matrix, second: sp.csr_matrix) -> tuple[float, float]:
    """Return the two scores of a prediction."""
    total = np.asarray(first.sum(axis=0)).ravel()
    mixed = (1 - MIXED_IN) * expression + MIXED_IN * total / total.sum()
    mean = mixed * np.asarray(first.sum(axis=1))
    seen = second.toarray()
    # Genes that the first half never shows say nothing, whatever the tool.
    known = total > 0
    mean, seen = mean[:, known], seen[:, known]
    log_ratio = np.zeros_like(mean)
    np.log(seen / mean, out=log_ratio, where=seen > 0)
    squared = np.square(seen - mean) / (total[known] / first.shape[0])
    return float(2 * (seen * log_ratio - seen + mean).mean()), float(squared.mean())


def run(tool: str, name: str, seed: int, smoke: bool) -> dict[str, object]:
    """Predict the second half of one dataset by one tool and return a row of figures."""
    if smoke:
        import scvae_ext as sv

        everything, batch_key = sv.datasets.synthetic_counts(200, 60, seed=seed), None
    else:
        dataset = LABELLED[name]
        everything, batch_key = dataset.load(), dataset.batch_key
    first, second = split_molecules(everything.X.tocsr(), seed)
    filled = np.asarray(first.sum(axis=1)).ravel() > 0
    first, second = first[filled], second[filled]
    half = ad.AnnData(first, obs=everything.obs[filled].copy(), var=everything.var[[]].copy())
    start = time.perf_counter()
    if tool.startswith("scvae-ext"):
        given = "counts" if tool.endswith("given counts") else "state"
        candidates = [by_scvae_ext(half, batch_key, seed, smoke, given)]
    elif tool == "scvi-tools":
        candidates = [by_scvi(half, batch_key, seed, smoke)]
    elif tool == "knn":
        candidates = [by_knn(half, seed)]
    elif tool == "pca":
        # In hindsight the best number of components, which flatters it.
        candidates = []
        for n in PCA_COMPONENTS:
            values = np.expm1(principal_components(first, n, seed)[1]).clip(0)
            candidates.append(values / values.sum(axis=1, keepdims=True))
    elif tool == "raw":
        candidates = [shares(first)]
    else:
        total = np.asarray(first.sum(axis=0)).ravel()
        candidates = [np.broadcast_to(total / total.sum(), first.shape)]
    seconds = time.perf_counter() - start
    scores = min(scores_of(np.asarray(candidate, dtype=np.float64), first, second) for candidate in candidates)
    return {
        "dataset": name,
        "n_obs": half.n_obs,
        "n_vars": half.n_vars,
        "seed": seed,
        "tool": tool,
        "deviance": scores[0],
        "squared_error": scores[1],
        "seconds": seconds,
        "version": version(PACKAGES.get(tool, "scikit-learn")),
        "python": platform.python_version(),
    }


def coverage(name: str, seed: int, smoke: bool) -> dict[str, object]:
    """Train on simulated counts and return how often intervals hold the true expression."""
    import scvae_ext as sv

    arguments, likelihood = ({"n_cells": 200, "n_genes": 60}, "nb") if smoke else SIMULATED[name]
    adata = sv.datasets.synthetic_counts(**arguments, seed=seed)
    sv.SCVAE.setup_anndata(adata, batch_key="batch" if "n_batches" in arguments else None)
    model = sv.SCVAE(adata, gene_likelihood=likelihood, seed=seed)
    options = {"accelerator": "cpu", "max_steps": STEPS_OF_SMOKE if smoke else None}
    model.train(enable_progress_bar=False, **options)
    model.calibrate_intervals(train_options={"accelerator": "cpu"})
    truth, row = (
        adata.layers["expression"],
        {"simulated": name, "n_obs": adata.n_obs, "n_vars": adata.n_vars, "seed": seed},
    )
    for level in LEVELS:
        found = model.get_normalized_expression(interval=level, key_added=None)
        row[str(level)] = float(((truth >= found.lower) & (truth <= found.upper)).mean())
    return row | {"version": version("scvae-ext"), "python": platform.python_version()}


def coverage_table(rows: pd.DataFrame) -> str:
    """Return the share of true values inside the intervals in percent, a mean over seeds, as Markdown."""
    if not len(rows):
        return "no rows yet"
    levels = [str(level) for level in LEVELS]
    head = [f"{100 * level:g} %" for level in LEVELS]
    lines = ["| simulated | cells x genes | seeds | " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * len(head)]
    for name, runs in rows.groupby("simulated", sort=False):
        means = " | ".join(f"{100 * runs[level].mean():.1f}" for level in levels)
        size = f"{runs['n_obs'].iloc[0]} x {runs['n_vars'].iloc[0]}"
        lines.append(f"| {name} | {size} | {runs['seed'].nunique()} | {means} |")
    return "\n".join(lines)


def append(row: dict[str, object], results: Path) -> None:
    """Print a row and add it to the results file."""
    print(json.dumps(row), flush=True)
    results.parent.mkdir(exist_ok=True)
    with results.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def finished(results: Path) -> pd.DataFrame:
    """Return the rows of the results file."""
    return pd.read_json(results, lines=True) if results.exists() else pd.DataFrame()


def table(rows: pd.DataFrame) -> str:
    """Return the deviance by dataset and tool, a mean over seeds, and the squared error in brackets, as Markdown."""
    if not len(rows):
        return "no rows yet"
    tools = [tool for tool in TOOLS if tool in set(rows["tool"])]
    lines = ["| dataset | cells x genes | seeds | " + " | ".join(tools) + " |", "|---|---|---|" + "---:|" * len(tools)]
    for dataset, of_dataset in rows.groupby("dataset"):
        means = of_dataset.groupby("tool")[["deviance", "squared_error"]].mean()
        best = means["deviance"].idxmin()
        cells = []
        for tool in tools:
            text = "" if tool not in means.index else "{:.4f} ({:.3f})".format(*means.loc[tool])
            cells.append(f"**{text}**" if tool == best else text)
        size = f"{of_dataset['n_obs'].iloc[0]} x {of_dataset['n_vars'].iloc[0]}"
        lines.append(f"| {dataset} | {size} | {of_dataset['seed'].nunique()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(LABELLED), choices=list(LABELLED))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--results", type=Path, help="file of the rows; the one in benchmarks/results by default")
    parser.add_argument("--coverage", action="store_true", help="measure the coverage of intervals instead")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="run on tiny synthetic data, without scvi-tools")
    arguments = parser.parse_args()
    if arguments.smoke:
        tools = [tool for tool in arguments.tools if tool != "scvi-tools"]
        print(table(pd.DataFrame([run(tool, "synthetic", 0, True) for tool in tools])))
        print(coverage_table(pd.DataFrame([coverage("synthetic", 0, True)])))
        return
    arguments.results = arguments.results or (COVERAGE_RESULTS if arguments.coverage else RESULTS)
    if arguments.coverage:
        for seed in arguments.seeds:
            for name in SIMULATED:
                rows = finished(arguments.results)
                if arguments.table or (len(rows) and (rows[["simulated", "seed"]] == (name, seed)).all(axis=1).any()):
                    continue
                append(coverage(name, seed, False), arguments.results)
        print(coverage_table(finished(arguments.results)))
        return
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.datasets:
                for tool in arguments.tools:
                    rows, wanted = finished(arguments.results), (tool, name, seed)
                    if len(rows) and (rows[["tool", "dataset", "seed"]] == wanted).all(axis=1).any():
                        continue
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        row = run(*wanted, False)
                    append(row, arguments.results)
    print(table(finished(arguments.results)))


if __name__ == "__main__":
    main()
