"""How the cost of training grows with genes, cells, minibatch and density, beside scvi-tools, both with "nb".

Each point is the time between two training runs of different length, so that what happens once (reading, set-up, the
start of Lightning) is not in it; each run is a process of its own. Finished points are lines of a results file.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    python benchmarks/scaling.py                  # an hour on two cores; goes on where it stopped
    python benchmarks/scaling.py --plot docs/_static/scaling.png
    python benchmarks/scaling.py --smoke          # seconds, to see whether it runs
"""

import argparse
import json
import math
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from workers import TOOLS, installed_tools, machine, measure, report

RESULTS = Path(__file__).parent / "results" / "scaling.jsonl"
BASE = {"cells": 10_000, "genes": 2_000, "batch_size": 128, "density": 0.1}
AXES = {
    "genes": [500, 2_000, 5_000, 20_000],
    "cells": [1_000, 10_000, 100_000, 1_000_000],
    "batch_size": [32, 128, 512, 2_048],
    "density": [0.02, 0.05, 0.1, 0.2, 0.4],
}
TITLES = {"genes": "genes", "cells": "cells", "batch_size": "cells of a minibatch", "density": "share not zero"}


def random_counts(cells: int, genes: int, density: float):
    """Return counts with about the given share of entries that are not zero, at random places."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    per_cell = max(1, round(-math.log1p(-density) * genes))
    columns = rng.integers(genes, size=cells * per_cell, dtype=np.int32)
    counts = sp.csr_matrix(
        (np.ones(len(columns), np.float32), columns, np.arange(cells + 1, dtype=np.int64) * per_cell), (cells, genes)
    )
    counts.sum_duplicates()
    return counts


def train_scvae_ext(adata, batch_size: int, steps: int) -> None:
    """Train for a number of updates."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata, gene_likelihood="nb")
    model.train(
        max_steps=steps,
        batch_size=batch_size,
        train_size=1.0,
        early_stopping=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )


def train_scvi_tools(adata, batch_size: int, steps: int) -> None:
    """Train for a number of updates."""
    import scvi

    scvi.settings.verbosity = 40
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    per_epoch = math.ceil(adata.n_obs / batch_size)
    options = {"batch_size": batch_size, "train_size": 1.0, "accelerator": "cpu", "enable_progress_bar": False}
    model.train(max_epochs=math.ceil(steps / per_epoch), limit_train_batches=min(steps, per_epoch), **options)


def worker(arguments: argparse.Namespace) -> None:
    """Time a short and a longer training run and report the difference, per update."""
    warnings.simplefilter("ignore")
    import anndata as ad

    point = json.loads(arguments.point)
    counts = random_counts(point["cells"], point["genes"], point["density"])
    train = {"scvae-ext": train_scvae_ext, "scvi-tools": train_scvi_tools}[arguments.worker]
    per_epoch = math.ceil(point["cells"] / point["batch_size"])
    # Whole epochs where they are short, because the peer cannot stop within one.
    short, long = (
        steps if steps < per_epoch else math.ceil(steps / per_epoch) * per_epoch
        for steps in (arguments.steps // 4, arguments.steps)
    )
    seconds = []
    for steps in (short, short, long):
        adata = ad.AnnData(counts)
        start = time.perf_counter()
        train(adata, point["batch_size"], steps)
        seconds.append(time.perf_counter() - start)
    update = (seconds[2] - seconds[1]) / (long - short) if long > short else seconds[2] / long
    report(
        {
            "tool": arguments.worker,
            **point,
            "milliseconds_per_update": 1e3 * update,
            "cells_per_second": min(point["batch_size"], point["cells"]) / update,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw training speed against each axis, both packages."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(AXES), figsize=(13, 3.4), sharey=True, layout="constrained")
    for panel, (axis, values) in zip(panels, AXES.items(), strict=True):
        others = [name for name in BASE if name != axis]
        at_base = rows[np.logical_and.reduce([rows[name] == BASE[name] for name in others])]
        for tool, color in zip(TOOLS, ("#1f77b4", "#888888"), strict=True):
            line = at_base[at_base["tool"] == tool].groupby(axis)["cells_per_second"].median().reindex(values).dropna()
            panel.plot(line.index, line, marker="o", color=color, label=tool)
        panel.set(xscale="log", yscale="log", xlabel=TITLES[axis])
    panels[0].set_ylabel("training, cells per second")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is missing, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--smoke", action="store_true", help="tiny, and without the peer where it is not installed")
    parser.add_argument("--worker", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.smoke:
        for tool in installed_tools():
            point = {"cells": 200, "genes": 50, "batch_size": 32, "density": 0.1}
            options = ["--worker", tool, "--steps", "20", "--point", json.dumps(point)]
            print(measure(__file__, options, arguments.threads))
        return
    rows = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
    if arguments.plot:
        plot(rows, arguments.plot)
        return
    points = [BASE] + [{**BASE, axis: value} for axis in arguments.axes for value in AXES[axis] if value != BASE[axis]]
    for point in points:
        for tool in TOOLS:
            if len(rows) and (rows[["tool", *point]] == (tool, *point.values())).all(axis=1).any():
                continue
            options = ["--worker", tool, "--steps", str(arguments.steps), "--point", json.dumps(point)]
            row = measure(__file__, options, arguments.threads)
            print(json.dumps(row), flush=True)
            with arguments.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    print(machine(arguments.threads))


if __name__ == "__main__":
    main()
