"""Training on counts that stay on disk beside training on the same counts in memory: memory, throughput, quality.

Synthetic counts (negative binomial, ten batches one after the other in the file, ten cell types, about 7% of the
entries not zero) are written as CSR into an h5ad, and trained on with the same number of updates: from disk
(`read_h5ad(path, backed="r")`) and in memory, in turn, each in a process of its own. The ELBO is that of 2,000 further
cells. Peak memory is the resident set of the process (VmHWM), set-up, training and getters with `out=` included.

    python benchmarks/out_of_core.py                 # 100k, 300k and 1M cells; hours on a busy machine of two cores
    python benchmarks/out_of_core.py --smoke         # 3,000 cells, seconds, to see whether it runs
    python benchmarks/out_of_core.py --table         # the table of benchmarks/results/out_of_core.jsonl
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results" / "out_of_core.jsonl"
MODES = ("memory", "disk")
N_HELD_OUT = 2000
N_LATENT, N_TYPES, N_BATCHES = 10, 10, 10
CELLS_PER_CHUNK = 2000


def write_counts(path: Path, n_cells: int, n_genes: int, seed: int) -> None:
    """Write cells drawn from one model, chunk by chunk; the seed is that of the cells, not of the model."""
    import anndata as ad
    import h5py
    import scipy.sparse as sp

    truth, generator = np.random.default_rng(0), np.random.default_rng([1, seed])
    centres = truth.normal(size=(N_TYPES, N_LATENT))
    baseline = truth.normal(0, 1.3, n_genes)
    loadings = truth.normal(0, 1 / np.sqrt(N_LATENT), (N_LATENT, n_genes))
    batch_effect = truth.normal(0, 0.2, (N_BATCHES, n_genes))
    theta = (2 * np.exp(truth.normal(0, 0.5, n_genes))).astype(np.float32)
    batch = np.sort(np.arange(n_cells) % N_BATCHES)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for start in range(0, n_cells, CELLS_PER_CHUNK):
            of_chunk = batch[start : start + CELLS_PER_CHUNK]
            latent = centres[generator.integers(0, N_TYPES, len(of_chunk))]
            latent = latent + generator.normal(size=latent.shape)
            mean = np.exp((baseline + latent @ loadings + batch_effect[of_chunk]).astype(np.float32))
            mean *= 0.125 * n_genes * np.exp(generator.normal(0, 0.3, (len(mean), 1))) / mean.sum(1, keepdims=True)
            rate = mean.astype(np.float32) * generator.standard_gamma(theta, mean.shape, dtype=np.float32) / theta
            counts = generator.poisson(rate).astype(np.float32)
            counts[counts.sum(1) == 0, 0] = 1
            if start == 0:
                ad.io.write_elem(file, "X", sp.csr_matrix(counts))
            else:
                ad.io.sparse_dataset(file["X"]).append(sp.csr_matrix(counts))
        obs = pd.DataFrame({"batch": pd.Categorical([f"batch_{code}" for code in batch])})
        ad.io.write_elem(file, "obs", obs.set_index(pd.Index([f"cell_{i}" for i in range(n_cells)])))
        ad.io.write_elem(file, "var", pd.DataFrame(index=[f"gene_{i}" for i in range(n_genes)]))


def peak_mb() -> float:
    """Return the largest resident set of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def worker(arguments: argparse.Namespace) -> None:
    """Train once and print a line of JSON."""
    import anndata as ad

    import scvae_ext as sv
    import scvae_ext.train.fit  # Lightning takes seconds to import.

    row = {"mode": arguments.worker, "import_mb": peak_mb()}
    adata = ad.read_h5ad(arguments.counts, backed="r" if arguments.worker == "disk" else None)
    clock = Clock()
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    model = sv.SCVAE(adata)
    row["setup_seconds"], _ = clock.read()
    clock = Clock()
    model.train(max_steps=arguments.steps, early_stopping=False, accelerator="cpu", enable_progress_bar=False)
    seconds, processor_seconds = clock.read()
    row["cells_per_second"] = arguments.steps * 128 / seconds
    row["cells_per_processor_second"] = arguments.steps * 128 / processor_seconds
    row["training_mb"] = peak_mb()
    row["elbo"] = model.get_elbo(ad.read_h5ad(arguments.held_out))
    with tempfile.TemporaryDirectory(dir=arguments.counts.parent) as folder:
        clock = Clock()
        model.get_latent_representation(out=Path(folder) / "latent.zarr")
        row["latent_cells_per_processor_second"] = adata.n_obs / clock.read()[1]
        if arguments.expression:
            clock = Clock()
            model.get_normalized_expression(n_samples=1, out=Path(folder) / "expression.h5ad")
            row["expression_cells_per_processor_second"] = adata.n_obs / clock.read()[1]
    row["peak_mb"] = peak_mb()
    print("RESULT" + json.dumps(row))


def child(arguments: argparse.Namespace, options: list[str]) -> dict[str, object]:
    """Run this script in a process of its own and return what it measured."""
    command = [sys.executable, __file__, "--steps", str(arguments.steps), "--genes", str(arguments.genes), *options]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    finished = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT"))


def measure(arguments: argparse.Namespace) -> None:
    """Write the counts, and train on them from disk and in memory, in turn."""
    from importlib.metadata import version

    about = {
        "versions": {name: version(name) for name in ("scvae-ext", "torch", "anndata", "h5py")},
        "python": platform.python_version(),
        "n_genes": arguments.genes,
    }
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        held_out, counts = Path(folder) / "held_out.h5ad", Path(folder) / "counts.h5ad"
        for n_cells in arguments.cells:
            is_large = n_cells > arguments.largest_in_full
            for path, n, seed in ((held_out, N_HELD_OUT, 1), (counts, n_cells, 0)):
                # In a process of its own, so that its memory is nobody's.
                child(arguments, ["--write", str(n), "--seed", str(seed), "--counts", str(path)])
            for pair in range(1 if is_large else arguments.pairs):
                for mode in MODES if pair % 2 else reversed(MODES):
                    options = ["--worker", mode, "--counts", str(counts), "--held-out", str(held_out)]
                    if mode == "disk" and not is_large:
                        options.append("--expression")
                    row = {**about, "n_cells": n_cells, "pair": pair, "steps": arguments.steps}
                    row |= {"file_mb": counts.stat().st_size / 2**20, **child(arguments, options)}
                    print(json.dumps(row), flush=True)
                    with arguments.results.open("a") as results:
                        results.write(json.dumps(row) + "\n")


def table(rows: pd.DataFrame) -> str:
    """Medians, and ratios pair by pair, as Markdown."""
    lines = [
        "| cells | file, MB | updates, runs | peak memory, MB: disk | in memory | training from disk, share of the "
        "cells/s in memory: processor time (min to max) | wall time | held-out ELBO: disk | in memory | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (n_cells, steps), of_size in rows.groupby(["n_cells", "steps"]):
        disk, memory = (
            of_size[of_size["mode"] == mode].drop_duplicates("pair", keep="last").set_index("pair").sort_index()
            for mode in ("disk", "memory")
        )
        share, wall = (disk[rate] / memory[rate] for rate in ("cells_per_processor_second", "cells_per_second"))
        elbo = disk["elbo"].median(), memory["elbo"].median()
        lines.append(
            f"| {n_cells:,} | {disk['file_mb'].iloc[0]:,.0f} | {steps:,}, {len(disk)} | {disk['peak_mb'].max():,.0f} "
            f"| {memory['peak_mb'].max():,.0f} | {share.median():.2f} ({share.min():.2f} to {share.max():.2f}) "
            f"| {wall.median():.2f} ({wall.min():.2f} to {wall.max():.2f}) | {elbo[0]:.2f} | {elbo[1]:.2f} "
            f"| {(elbo[0] - elbo[1]) / abs(elbo[1]):+.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--largest-in-full", type=int, default=300_000, help="larger ones have one pair, no expression")
    parser.add_argument("--folder", type=Path, help="where the counts lie meanwhile: 1.3 kB a cell")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--worker", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--held-out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--expression", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.write:
        write_counts(arguments.counts, arguments.write, arguments.genes, arguments.seed)
        print('RESULT{"written": true}')
        return
    if arguments.smoke:
        arguments.cells, arguments.genes, arguments.steps, arguments.pairs = [3000], 100, 30, 1
    if not arguments.table:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.smoke:
                arguments.results = Path(folder) / "smoke.jsonl"
            measure(arguments)
            if arguments.smoke:
                print(table(pd.read_json(arguments.results, lines=True)))
    if not arguments.smoke:
        print(table(pd.read_json(arguments.results, lines=True)))


if __name__ == "__main__":
    main()
