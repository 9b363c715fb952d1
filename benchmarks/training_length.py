"""Held-out ELBO and silhouette width of the known types against the length of training.

The same cells and the same network as in ``quality.py``, trained for each number of updates with a schedule of that
length. Each finished run is a line in the results file, so that an interrupted benchmark goes on where it stopped.

    SCVAE_EXT_DATA=/path/to/data python benchmarks/training_length.py               # everything, an hour on two cores
    SCVAE_EXT_DATA=/path/to/data python benchmarks/training_length.py --datasets pbmc3k --lengths 500 1000
    python benchmarks/training_length.py --table                                     # only print what is there
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from labelled_datasets import LABELLED
from sklearn.metrics import silhouette_score

RESULTS = Path(__file__).parent / "results" / "training_length.jsonl"
LENGTHS = (400, 600, 1000, 1500, 2500, 4000)


def run(name: str, likelihood: str, seed: int, n_steps: int) -> dict[str, object]:
    """Train for a number of updates and return a row of figures."""
    import scvae_ext as sv

    dataset = LABELLED[name]
    everything = dataset.load()
    train, held_out = dataset.split(everything, seed)
    sv.SCVAE.setup_anndata(train, batch_key=dataset.batch_key)
    model = sv.SCVAE(train, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood=likelihood, seed=seed)
    model.train(max_steps=n_steps, accelerator="cpu", enable_progress_bar=False, seed=seed)
    latent = model.get_latent_representation(everything, key_added=None)
    labels = everything.obs[dataset.labels_key].astype(str)
    known = ~labels.isin(["unlabelled", "unknown", "nan"]).to_numpy()
    return {
        "dataset": name,
        "likelihood": likelihood,
        "seed": seed,
        "max_steps": n_steps,
        "n_train": len(model.train_indices),
        "steps": int(model.history["step"].iloc[-1]),
        "elbo": model.get_elbo(held_out, n_samples=20),
        "asw": (silhouette_score(latent[known], labels[known]) + 1) / 2,
        "version": version("scvae-ext"),
    }


def finished(path: Path) -> pd.DataFrame:
    """Return the rows of the results file."""
    return pd.read_json(path, lines=True) if path.exists() else pd.DataFrame()


def table(rows: pd.DataFrame) -> str:
    """Return ELBO and, in brackets, silhouette width of each length as Markdown."""
    lengths = sorted(rows["max_steps"].unique())
    lines = [
        f"| dataset | likelihood | seed | training cells | {' | '.join(f'{length:,}' for length in lengths)} |",
        f"|---|---|---:|---:|{'---:|' * len(lengths)}",
    ]
    for (n_train, name, likelihood, seed), of in rows.groupby(["n_train", "dataset", "likelihood", "seed"]):
        figures = {row.max_steps: f"{row.elbo:.1f} ({row.asw:.3f})" for row in of.itertuples()}
        cells = [figures.get(length, "") for length in lengths]
        lines.append(f"| {name} | {likelihood} | {seed} | {n_train:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(LABELLED), choices=list(LABELLED))
    parser.add_argument("--likelihoods", nargs="+", default=["nb"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    if not arguments.table:
        arguments.results.parent.mkdir(exist_ok=True)
        keys = ["dataset", "likelihood", "seed", "max_steps"]
        wanted = [
            (name, likelihood, seed, n_steps)
            for seed in arguments.seeds
            for name in arguments.datasets
            for likelihood in arguments.likelihoods
            for n_steps in arguments.lengths
        ]
        for each in wanted:
            rows = finished(arguments.results)
            if len(rows) and (rows[keys] == each).all(axis=1).any():
                continue
            row = run(*each)
            with arguments.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    rows = finished(arguments.results)
    print(table(rows) if len(rows) else "no finished run yet")


if __name__ == "__main__":
    main()
