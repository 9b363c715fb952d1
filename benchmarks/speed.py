"""Cells per second and memory on a CPU, beside scvi-tools: training, latent representation, denoised expression.

Both packages get the same synthetic counts, the same architecture (128 hidden units, one layer, ten latent dimensions)
and minibatches of 128 cells, and train for the same number of epochs; the ELBO after it is printed beside the speed.
Each measurement is a process of its own, the two packages in turn, so that a drift of the machine meets both. Getters
are called nine times: their first calls are on memory that the process never had before, which some machines are slow
to give, and the very first has a row of its own.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    python benchmarks/speed.py                                        # six to thirty minutes on two cores
    python benchmarks/speed.py --smoke                                # seconds, to see whether it runs
"""

import argparse
import importlib
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from workers import TOOLS, installed_tools, machine, measure, report

RATES = ("train", "latent", "expression", "first_latent", "first_expression")
N_CALLS = 9
N_HELD_OUT = 500


def write_counts(path: Path, n_cells: int, n_genes: int) -> None:
    """Write synthetic counts, 10 to 15% of them not zero, so that making them is in nobody's time or memory."""
    import anndata as ad

    import scvae_ext as sv

    adata = sv.datasets.synthetic_counts(n_cells + N_HELD_OUT, n_genes, n_types=10, library_size=0.25 * n_genes, seed=0)
    ad.AnnData(adata.X).write_h5ad(path)


def measure_scvae_ext(train, held_out, likelihood, epochs):
    """Train and time the getters of scvae_ext."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(train)
    model = sv.SCVAE(train, gene_likelihood=likelihood)
    options = {"train_size": 1.0, "early_stopping": False, "enable_progress_bar": False, "accelerator": "cpu"}
    model.train(max_steps=20, **options)
    model = sv.SCVAE(train, gene_likelihood=likelihood)
    figures = {"train": timed(lambda: model.train(max_epochs=epochs, **options)), "training_mb": peak_mb()}
    figures |= repeated("latent", lambda: model.get_latent_representation(key_added=None))
    figures |= repeated(
        "expression", lambda: model.get_normalized_expression(n_samples=1, return_numpy=True, key_added=None)
    )
    return figures, model.get_elbo(held_out)


def measure_scvi_tools(train, held_out, likelihood, epochs):
    """Train and time the getters of scvi-tools."""
    import scvi

    scvi.settings.verbosity = 40
    scvi.model.SCVI.setup_anndata(train)
    options = {"train_size": 1.0, "accelerator": "cpu", "enable_progress_bar": False}
    model = scvi.model.SCVI(train, gene_likelihood=likelihood)
    model.train(max_epochs=1, limit_train_batches=20, **options)
    model = scvi.model.SCVI(train, gene_likelihood=likelihood)
    figures = {"train": timed(lambda: model.train(max_epochs=epochs, **options)), "training_mb": peak_mb()}
    figures |= repeated("latent", model.get_latent_representation)
    figures |= repeated("expression", lambda: model.get_normalized_expression(return_numpy=True))
    return figures, float(np.mean([float(model.get_elbo(held_out)) for _ in range(10)]))


def timed(action) -> float:
    """Return the seconds that an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def repeated(name: str, action) -> dict[str, float]:
    """Return the seconds of the first of some calls, and the median of all."""
    seconds = [timed(action) for _ in range(N_CALLS)]
    return {f"first_{name}": seconds[0], name: float(np.median(seconds))}


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare_products(n_genes: int, n_hidden: int = 128, batch_size: int = 128) -> float:
    """Return the seconds that the five large matrix products of one update take, without anything else."""
    import torch

    x, first = torch.rand(batch_size, n_genes), torch.rand(n_genes, n_hidden)
    hidden, last = torch.rand(batch_size, n_hidden), torch.rand(n_hidden, n_genes)
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        encoded, decoded = x @ first, hidden @ last
        decoded @ last.T, hidden.T @ decoded, x.T @ encoded
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def worker(arguments: argparse.Namespace) -> None:
    """Measure one package once and print a line of JSON."""
    warnings.simplefilter("ignore")
    import anndata as ad

    importlib.import_module({"scvae-ext": "scvae_ext.models", "scvi-tools": "scvi"}[arguments.worker])
    imports_mb = peak_mb()
    adata = ad.read_h5ad(arguments.counts)
    train, held_out = adata[:-N_HELD_OUT].copy(), adata[-N_HELD_OUT:].copy()
    del adata
    timings = {"scvae-ext": measure_scvae_ext, "scvi-tools": measure_scvi_tools}[arguments.worker]
    figures, elbo = timings(train, held_out, arguments.likelihood, arguments.epochs)
    row = {name: train.n_obs * (arguments.epochs if name == "train" else 1) / figures[name] for name in RATES}
    row["density"] = train.X.nnz / (train.n_obs * train.n_vars)
    row["products"] = 128 / bare_products(train.n_vars)
    row |= {"imports_mb": imports_mb, "training_mb": figures["training_mb"], "peak_mb": peak_mb()}
    report({"tool": arguments.worker, "elbo": elbo, **row})


def run(arguments: argparse.Namespace, counts: Path, tool: str, likelihood: str) -> dict[str, object]:
    """Measure one package in a process of its own."""
    options = ["--worker", tool, "--likelihood", likelihood, "--counts", str(counts), "--epochs", str(arguments.epochs)]
    return {"likelihood": likelihood, **measure(__file__, options, arguments.threads)}


def table(rows: pd.DataFrame) -> str:
    """Medians of both packages and the ratio pair by pair, as Markdown."""
    lines = [
        "| likelihood | figure | scvae_ext | scvi-tools | ratio (min to max) |",
        "|---|---|---|---|---|",
    ]
    labels = {
        "train": "training, cells/s",
        "latent": "`get_latent_representation`, cells/s",
        "first_latent": "the same, first call",
        "expression": "`get_normalized_expression`, cells/s",
        "first_expression": "the same, first call",
        "training_mb": "peak memory after training, MB",
        "imports_mb": "of that, imports, MB",
        "peak_mb": "peak memory after the getters, MB",
        "elbo": "held-out ELBO after it, nats per cell",
    }
    for likelihood, of_likelihood in rows.groupby("likelihood", sort=False):
        ours, peer = (of_likelihood[of_likelihood["tool"] == tool].reset_index() for tool in TOOLS)
        for name, label in labels.items():
            ratio = ours[name] / peer[name]
            spread = "" if name == "elbo" else f"{ratio.median():.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
            digits = 1 if name == "elbo" else 0
            lines.append(
                f"| {likelihood} | {label} | {ours[name].median():,.{digits}f} | {peer[name].median():,.{digits}f} "
                f"| {spread} |"
            )
        share = ours["train"] / ours["products"]
        lines.append(
            f"| {likelihood} | training, share of the five bare matrix products | {share.median():.2f} "
            f"| {(peer['train'] / peer['products']).median():.2f} | |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument("--smoke", action="store_true", help="tiny, and without the peer where it is not installed")
    parser.add_argument("--likelihood", help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=TOOLS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    tools = list(TOOLS)
    if arguments.smoke:
        arguments.cells, arguments.genes, arguments.epochs, arguments.pairs = 300, 100, 1, 1
        tools = installed_tools()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.h5ad"
        # In a process of its own: a child's peak memory starts at that of the process that began it.
        making = multiprocessing.get_context("spawn").Process(
            target=write_counts, args=(counts, arguments.cells, arguments.genes)
        )
        making.start()
        making.join()
        for pair in range(arguments.pairs):
            for likelihood in arguments.likelihoods:
                for tool in tools if pair % 2 else reversed(tools):
                    rows.append(run(arguments, counts, tool, likelihood))
                    print(json.dumps(rows[-1]), flush=True)
    print(
        f"\n{arguments.cells:,} cells x {arguments.genes:,} genes, {rows[0]['density']:.0%} not zero, "
        f"{arguments.epochs} epochs, medians of {arguments.pairs} pairs, {machine(arguments.threads)}"
    )
    if len(tools) == len(TOOLS):
        print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
