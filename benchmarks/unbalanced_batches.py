"""Cell types that only one batch has: how well they are kept apart when batches are integrated.

What makes batches alike can make cells alike that are not. Of each dataset with several batches, one type after the
other (the five largest, of at least 100 cells) is left in the batch that has most of it and taken out of all others.
Every tool of ``integration.py`` embeds what is left. Of the type that is now in one batch, and of all cells: the share
of the 15 nearest cells that are of the same type ("purity"), and the silhouette width of the types, scaled to between 0
and 1. Each finished run is a line in the results file, so that an interrupted benchmark goes on where it stopped.

    python3 -m venv .venv-scib && .venv-scib/bin/pip install -c constraints.txt . \
        && .venv-scib/bin/pip install -r benchmarks/requirements-integration.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/unbalanced_batches.py         # an hour on two cores
    python benchmarks/unbalanced_batches.py --table                              # only print what is there
    python benchmarks/unbalanced_batches.py --smoke                              # tiny synthetic data, some seconds
"""

import argparse
import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from integration import MODULES, TOOLS, Synthetic, embed, finished, package_version
from labelled_datasets import LABELLED, LabelledDataset
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

RESULTS = Path(__file__).parent / "results" / "unbalanced_batches.jsonl"
DATASETS = ("kang_ifnb_muscat1556", "pbmc_3tech_1767genes", "mixology_cross_protocol")
N_NEIGHBOURS = 15
N_TYPES, FEWEST_CELLS = 5, 100
FIGURES = ("purity_of_type", "purity", "silhouette_of_type", "silhouette")


def large_types(dataset: LabelledDataset, fewest: int = FEWEST_CELLS) -> list[str]:
    """Return the most common types."""
    sizes = dataset.load().obs[dataset.labels_key].astype(str).value_counts()
    return list(sizes.index[sizes >= fewest][:N_TYPES])


def in_one_batch(everything: ad.AnnData, dataset: LabelledDataset, cell_type: str) -> ad.AnnData:
    """Return the cells without those of a type in all batches but the one that has most of it."""
    batch = everything.obs[dataset.batch_key].astype(str)
    is_type = everything.obs[dataset.labels_key].astype(str) == cell_type
    kept = batch[is_type].value_counts().index[0]
    return everything[(~is_type | (batch == kept)).to_numpy()].copy()


def scores(latent: np.ndarray, types: np.ndarray, cell_type: str) -> dict[str, float]:
    """Return purity and silhouette width, of one type and of all cells."""
    search = NearestNeighbors(n_neighbors=N_NEIGHBOURS + 1).fit(latent)
    # A cell's nearest is itself.
    nearest = search.kneighbors(latent, return_distance=False)[:, 1:]
    purity = (types[nearest] == types[:, np.newaxis]).mean(1)
    silhouette = (1 + silhouette_samples(latent, types)) / 2
    of_type = types == cell_type
    values = purity[of_type], purity, silhouette[of_type], silhouette
    return {name: round(float(value.mean()), 4) for name, value in zip(FIGURES, values, strict=True)}


def run(tool: str, dataset: LabelledDataset, cell_type: str, seed: int, smoke: bool = False) -> dict[str, object]:
    """Embed with one tool, and return a row of figures."""
    cells = in_one_batch(dataset.load(), dataset, cell_type)
    latent, elbo = embed(tool, dataset, seed, smoke, cells)
    types = cells.obs[dataset.labels_key].astype(str).to_numpy()
    row = {"dataset": dataset.name, "cell_type": cell_type, "seed": seed, "tool": tool, "n_cells": cells.n_obs}
    return row | scores(np.asarray(latent), types, cell_type) | {"elbo": elbo, "version": package_version(tool)}


def table(rows: pd.DataFrame) -> str:
    """Return means over types as Markdown."""
    lines = [
        "| dataset | tool | runs | purity of the type | of all | silhouette of the type | of all |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in [name for name in DATASETS if name in set(rows["dataset"])]:
        by_tool = rows[rows["dataset"] == name].groupby("tool")
        for tool in [tool for tool in TOOLS if tool in by_tool.groups]:
            of = by_tool.get_group(tool)
            lines.append(
                f"| {name} | {tool} | {len(of)} | " + " | ".join(f"{of[f].mean():.3f}" for f in FIGURES) + " |"
            )
    return "\n".join(lines)


def smoke() -> None:
    """Run everything that is installed on tiny data."""
    dataset = Synthetic("synthetic", "batch")
    for tool in TOOLS:
        if tool in MODULES and find_spec(MODULES[tool]) is None:
            print(f"{tool}: not installed")
            continue
        print(json.dumps(run(tool, dataset, large_types(dataset, fewest=1)[0], 0, smoke=True)))


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="tiny synthetic data, to see that it runs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.smoke:
        smoke()
        return
    if not arguments.table:
        keys = ["dataset", "cell_type", "seed", "tool"]
        for name in arguments.datasets:
            for cell_type in large_types(LABELLED[name]):
                for seed in arguments.seeds:
                    for tool in arguments.tools:
                        rows, wanted = finished(arguments.results), (name, cell_type, seed, tool)
                        if len(rows) and (rows[keys] == wanted).all(axis=1).any():
                            continue
                        row = run(tool, LABELLED[name], cell_type, seed)
                        print(json.dumps(row), flush=True)
                        with arguments.results.open("a") as stream:
                            stream.write(json.dumps(row) + "\n")
    rows = finished(arguments.results)
    print(table(rows) if len(rows) else "no finished run yet")


if __name__ == "__main__":
    main()
