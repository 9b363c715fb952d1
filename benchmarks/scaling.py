"""How the cost of training grows with genes, cells, minibatch and density, beside scvi-tools, both with "nb".

A point is the time between updates within one training run, so that what happens once (reading, set-up, the start of
Lightning) is not in it; each run is a process of its own, the two packages in turn, and the plot shows medians.
Finished runs are lines of a results file.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    python benchmarks/scaling.py                  # half an hour on two cores; goes on where it stopped
    python benchmarks/scaling.py --table          # of what is there, as is --plot
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
from typing import ClassVar

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


def points_of(axes: list[str]) -> list[tuple[str, dict[str, float]]]:
    """Return the points to measure, each with what it varies."""
    others = [(axis, value) for axis in axes for value in AXES[axis] if value != BASE[axis]]
    return [("nothing", BASE), *((TITLES[axis], {**BASE, axis: value}) for axis, value in others)]


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


def train_scvae_ext(adata, batch_size: int, steps: int, callbacks: list) -> None:
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
        callbacks=callbacks,
    )


def train_scvi_tools(adata, batch_size: int, steps: int, callbacks: list) -> None:
    """Train for a number of updates; the peer cannot stop within an epoch but the first."""
    import scvi

    scvi.settings.verbosity = 40
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood="nb")
    per_epoch = math.ceil(adata.n_obs / batch_size)
    options = {"batch_size": batch_size, "train_size": 1.0, "accelerator": "cpu", "enable_progress_bar": False}
    model.train(
        max_epochs=math.ceil(steps / per_epoch),
        limit_train_batches=min(steps, per_epoch),
        callbacks=callbacks,
        **options,
    )


def stopwatch(start: int):
    """Return a Lightning callback that notes updates and time at the end of batches, once some updates are done."""
    from lightning.pytorch.callbacks import Callback

    class Stopwatch(Callback):
        notes: ClassVar[list[tuple[int, float]]] = []

        def on_train_batch_end(self, trainer, *_: object) -> None:
            if trainer.global_step >= start:
                self.notes.append((trainer.global_step, time.perf_counter()))

    return Stopwatch()


def worker(arguments: argparse.Namespace) -> None:
    """Train once and report the time of an update."""
    warnings.simplefilter("ignore")
    import anndata as ad

    point = json.loads(arguments.point)
    adata = ad.AnnData(random_counts(point["cells"], point["genes"], point["density"]))
    train = {"scvae-ext": train_scvae_ext, "scvi-tools": train_scvi_tools}[arguments.worker]
    watch = stopwatch(arguments.steps // 10)
    train(adata, point["batch_size"], arguments.steps, [watch])
    (first, start), (last, end) = watch.notes[0], watch.notes[-1]
    update = (end - start) / (last - first)
    report(
        {
            "tool": arguments.worker,
            **point,
            "milliseconds_per_update": 1e3 * update,
            "cells_per_second": min(point["batch_size"], point["cells"]) / update,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def table(rows: pd.DataFrame) -> str:
    """Medians over runs of both packages at each point, as Markdown."""
    points = rows.groupby(["tool", *BASE])[["milliseconds_per_update", "peak_mb"]].median()
    ours, peer = points.loc["scvae-ext"], points.loc["scvi-tools"]
    lines = [
        "| varied | genes | cells | minibatch | share not zero | scvae_ext, ms an update | scvi-tools | ratio "
        "| peak memory, MB | scvi-tools |",
        "|---|" + "---:|" * 9,
    ]
    for varied, point in points_of(list(AXES)):
        key = tuple(point[name] for name in BASE)
        if key not in ours.index or key not in peer.index:
            continue
        one, other = ours.loc[key], peer.loc[key]
        milliseconds = one["milliseconds_per_update"], other["milliseconds_per_update"]
        lines.append(
            f"| {varied} | {point['genes']:,} | {point['cells']:,} | {point['batch_size']:,} | "
            f"{point['density']:g} | {milliseconds[0]:.1f} | {milliseconds[1]:.1f} | "
            f"{milliseconds[1] / milliseconds[0]:.1f} | {one['peak_mb']:,.0f} | {other['peak_mb']:,.0f} |"
        )
    return "\n".join(lines)


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
        panel.set_xticks(values, [f"{value:,}" for value in values])
        panel.minorticks_off()
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--table", action="store_true")
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
    if arguments.plot or arguments.table:
        rows = pd.read_json(arguments.results, lines=True)
        if arguments.plot:
            plot(rows, arguments.plot)
        if arguments.table:
            print(table(rows))
        return
    for repeat in range(arguments.repeats):
        for _, point in points_of(arguments.axes):
            for tool in TOOLS:
                rows = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
                wanted = (repeat, tool, *point.values())
                if len(rows) and (rows[["repeat", "tool", *point]] == wanted).all(axis=1).any():
                    continue
                options = ["--worker", tool, "--steps", str(arguments.steps), "--point", json.dumps(point)]
                row = {"repeat": repeat, **measure(__file__, options, arguments.threads)}
                print(json.dumps(row), flush=True)
                with arguments.results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    print(machine(arguments.threads))


if __name__ == "__main__":
    main()
