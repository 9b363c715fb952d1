"""A GPU beside the CPU and beside scvi-tools: whether the results are right, then how fast they come.

First the checks, each with its limit: minibatches gathered on the device are those of the host; log-probabilities and
their gradients agree with the CPU; training in float32 and with bfloat16 products reaches the held-out ELBO of the CPU;
a block of minibatches waits for the device once. Where one fails, nothing is timed. Then cells per second of training
and of the getters for both packages on the same GPU, minibatch by minibatch size, each measurement in a process of its
own and the packages in turn. An epoch is timed from the end of the first to the end of the last, so that neither the
start of the process nor the way of the counts to the device is in it; the seconds of that stand beside it.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    python benchmarks/speed_gpu.py                 # everything, on a machine with a GPU of CUDA
    python benchmarks/speed_gpu.py --table         # only print what is in benchmarks/results/speed_gpu.jsonl
    python benchmarks/speed_gpu.py --smoke         # seconds: the same road on the CPU, without scvi-tools, no row kept
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

RESULTS = Path(__file__).parent / "results" / "speed_gpu.jsonl"
TOOLS = ("scvae-ext", "scvi-tools")
N_HELD_OUT = 2000
FIGURES = {
    "train": "training, cells/s",
    "start": "start of training, s",
    "latent": "`get_latent_representation`, cells/s",
    "expression": "`get_normalized_expression`, cells/s",
    "peak_mb": "peak memory of the device, MB",
    "elbo": "held-out ELBO after it, nats per cell",
}


def simulate(n_cells: int, n_genes: int):
    """Return training and held-out cells of about 12% counts that are not zero."""
    import scvae_ext as sv

    n_held_out = min(N_HELD_OUT, n_cells // 4)
    adata = sv.datasets.synthetic_counts(n_cells + n_held_out, n_genes, n_types=10, library_size=0.25 * n_genes, seed=0)
    return adata[:-n_held_out].copy(), adata[-n_held_out:].copy()


def minibatches_differ(device: torch.device) -> float:
    """Count the tensors of minibatches gathered on the device that are not those of the host."""
    from dataclasses import fields

    from scvae_ext.data import align, read_registry, setup_anndata
    from scvae_ext.train.device_cells import StreamedCells, load_cells

    adata, _ = simulate(3000, 200)
    setup_anndata(adata, batch_key="batch")
    source = align(adata, read_registry(adata))
    chosen, sizes = np.random.default_rng(0).permutation(adata.n_obs)[:2048], [128] * 16
    expected = source.block(chosen, sizes)
    n_different = 0
    for reader in (load_cells(source, np.arange(adata.n_obs), device, 10**9), StreamedCells(source, device)):
        for ours, theirs in zip(reader.block(chosen, sizes), expected, strict=True):
            pairs = [(getattr(ours.counts, name), getattr(theirs.counts, name)) for name in ("values", "flat_index")]
            # The first is compared above, the others are not registered.
            absent = ("counts", "size_factor", "proteins", "peaks")
            names = [field.name for field in fields(ours) if field.name not in absent]
            pairs += [(getattr(ours, name), getattr(theirs, name)) for name in names]
            n_different += sum(not torch.equal(one.cpu(), other) for one, other in pairs)
    return n_different


def largest_error(device: torch.device) -> float:
    """Return the largest error of log-probabilities and their gradients, against the CPU in double precision."""
    from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
    from scvae_ext.minibatch import SparseCounts

    generator = torch.Generator().manual_seed(0)
    mean = 10 ** torch.empty(64, 300).uniform_(-4, 3, generator=generator)
    theta = 10 ** torch.empty(300).uniform_(-2, 6, generator=generator)
    logits = torch.empty(64, 300).uniform_(-8, 4, generator=generator)
    counts = torch.poisson(mean, generator=generator)
    results = []
    for where, kind in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        for family in ("nb", "zinb", "poisson"):
            parameters = [value.to(where, kind, copy=True).requires_grad_() for value in (mean, theta, logits)]
            base = Poisson(parameters[0]) if family == "poisson" else NegativeBinomial(*parameters[:2])
            px = ZeroInflated(base, parameters[2]) if family == "zinb" else base
            log_prob = px.log_prob_sum(SparseCounts.from_dense(counts.to(where, kind)))
            log_prob.sum().backward()
            found = [log_prob, *(value.grad for value in parameters if value.grad is not None)]
            results.append([value.detach().double().cpu() for value in found])
    half = len(results) // 2
    return max(
        float(((one - other).abs() / (1 + other.abs())).max())
        for ours, theirs in zip(results[:half], results[half:], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )


def elbo_differences(accelerator: str, n_cells: int) -> dict[str, float]:
    """Return how far held-out ELBOs are from that of the CPU in float32, in percent of it."""
    import scvae_ext as sv

    train, held_out = simulate(n_cells, 200)

    def trained(accelerator: str, precision: str, likelihood: str) -> float:
        sv.SCVAE.setup_anndata(train)
        model = sv.SCVAE(train, gene_likelihood=likelihood)
        model.train(max_steps=300, accelerator=accelerator, precision=precision, enable_progress_bar=False)
        return model.get_elbo(held_out, n_samples=20)

    differences = {}
    for likelihood in ("nb", "zinb"):
        expected = trained("cpu", "32-true", likelihood)
        for precision in ("32-true", "bf16-mixed"):
            found = trained(accelerator, precision, likelihood)
            differences[f"{likelihood}, {precision}"] = 100 * abs(found - expected) / abs(expected)
    return differences


def waits_per_block(accelerator: str, device: torch.device) -> float:
    """Return how often the host waits for the device in a block of minibatches; nothing where there is no GPU."""
    import scvae_ext as sv

    if device.type != "cuda":
        return 0.0
    train, _ = simulate(20_000, 200)
    sv.SCVAE.setup_anndata(train)
    options = {"accelerator": accelerator, "train_size": 1.0, "early_stopping": False, "enable_progress_bar": False}

    def waits(n_epochs: int) -> int:
        model = sv.SCVAE(train)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                model.train(max_epochs=n_epochs, **options)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)

    n_blocks = -(-train.n_obs // (128 * 16))
    # What only happens once in a training is in both.
    return (waits(5) - waits(3)) / (2 * n_blocks)


def check(accelerator: str, device: torch.device, n_cells: int) -> list[dict[str, object]]:
    """Compare the device with the CPU; a row a check."""
    rows: list[dict[str, object]] = [
        {
            "check": "tensors of minibatches that differ from the host's",
            "found": minibatches_differ(device),
            "limit": 0,
        },
        {"check": "relative error of log-probabilities and gradients", "found": largest_error(device), "limit": 1e-3},
    ]
    for name, percent in elbo_differences(accelerator, n_cells).items():
        rows.append({"check": f"held-out ELBO, {name}: percent from the CPU", "found": percent, "limit": 1.0})
    # One at its end, and at the end of an epoch the record of the history.
    rows.append({"check": "waits for the device per block", "found": waits_per_block(accelerator, device), "limit": 2})
    return [{**row, "passed": bool(row["found"] <= row["limit"])} for row in rows]


def epoch_clock():
    """Make a callback that notes when each epoch ended on the device."""
    from lightning.pytorch.callbacks import Callback

    class Clock(Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_epoch_end(self, trainer, pl_module) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    return Clock()


def measure(tool: str, arguments: argparse.Namespace, train, held_out) -> dict[str, float]:
    """Train one package and time its getters."""
    clock = epoch_clock()
    options = {
        "max_epochs": arguments.epochs,
        "train_size": 1.0,
        "batch_size": arguments.batch_size,
        "accelerator": arguments.accelerator,
        "precision": arguments.precision,
        "enable_progress_bar": False,
        "callbacks": [clock],
    }
    if tool == "scvae-ext":
        import scvae_ext as sv

        sv.SCVAE.setup_anndata(train)
        model = sv.SCVAE(train, gene_likelihood=arguments.likelihood)
        start = time.perf_counter()
        model.train(early_stopping=False, **options)
        model.to_device(arguments.device)
        latent = seconds(lambda: model.get_latent_representation(key_added=None))
        expression = seconds(lambda: model.get_normalized_expression(n_samples=1, return_numpy=True, key_added=None))
        elbo = model.get_elbo(held_out)
    else:
        import scvi

        scvi.settings.verbosity = 40
        scvi.model.SCVI.setup_anndata(train)
        model = scvi.model.SCVI(train, n_hidden=128, n_latent=10, n_layers=1, gene_likelihood=arguments.likelihood)
        start = time.perf_counter()
        model.train(**options)
        latent = seconds(model.get_latent_representation)
        expression = seconds(lambda: model.get_normalized_expression(return_numpy=True))
        elbo = float(np.mean([float(model.get_elbo(held_out)) for _ in range(10)]))
    per_epoch = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)
    peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else float("nan")
    return {
        "train": train.n_obs / per_epoch,
        "start": clock.ends[0] - start - per_epoch,
        "latent": train.n_obs / latent,
        "expression": train.n_obs / expression,
        "peak_mb": peak,
        "elbo": float(elbo),
    }


def seconds(action) -> float:
    """Return the seconds that an action takes, after one round to warm up."""
    action()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def worker(arguments: argparse.Namespace) -> dict[str, object]:
    """Measure one package once."""
    import anndata as ad

    warnings.simplefilter("ignore")
    folder = Path(arguments.counts)
    train, held_out = (ad.read_h5ad(folder / f"{name}.h5ad") for name in ("train", "held_out"))
    named = {name: getattr(arguments, name) for name in ("likelihood", "batch_size", "precision", "epochs")}
    size = {"n_cells": train.n_obs, "n_genes": train.n_vars, "density": train.X.nnz / np.prod(train.shape)}
    return {"tool": arguments.worker, **named, **size, **measure(arguments.worker, arguments, train, held_out)}


def run_worker(arguments: argparse.Namespace, folder: str, tool: str, **settings: object) -> dict[str, object]:
    """Measure one package in a process of its own."""
    command = [sys.executable, __file__, "--worker", tool, "--counts", folder, "--epochs", str(arguments.epochs)]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RESULT")]
    if not lines:
        raise SystemExit(f"{tool} failed:\n{finished.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT"))


def table(rows: list[dict[str, object]]) -> str:
    """Checks, then medians of both packages and their ratio, as Markdown."""
    lines = ["| check | found | limit | passed |", "|---|---:|---:|---|"]
    for row in rows:
        if "check" in row:
            lines.append(
                f"| {row['check']} | {row['found']:.2g} | {row['limit']:g} | {'yes' if row['passed'] else 'no'} |"
            )
    timed = pd.DataFrame([row for row in rows if "tool" in row])
    if len(timed) == 0:
        return "\n".join([*lines, "", "No speed measured yet."])
    lines += [
        "",
        "| likelihood | minibatch | precision | figure | scvae_ext | scvi-tools | ratio |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for (likelihood, batch_size, precision), group in timed.groupby(
        ["likelihood", "batch_size", "precision"], sort=False
    ):
        medians = {tool: of_tool.median(numeric_only=True) for tool, of_tool in group.groupby("tool")}
        ours, peer = (medians.get(tool) for tool in TOOLS)
        for name, label in FIGURES.items():
            digits = 1 if name in ("elbo", "start") else 0
            cells = ["" if of is None else f"{of[name]:,.{digits}f}" for of in (ours, peer)]
            ratio = "" if ours is None or peer is None or name == "elbo" else f"{ours[name] / peer[name]:.2f}"
            lines.append(f"| {likelihood} | {batch_size} | {precision} | {label} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def describe(device_name: str) -> str:
    """Name the machine and the versions."""
    versions = ["scvae-ext", "torch", "lightning"]
    try:
        versions.append(f"scvi-tools {version('scvi-tools')}")
    except ImportError:
        versions.append("without scvi-tools")
    named = [name if " " in name else f"{name} {version(name)}" for name in versions]
    return f"{device_name}, {platform.machine()}, Python {platform.python_version()}, " + ", ".join(named)


def measure_everything(arguments: argparse.Namespace, keep) -> None:
    """Time both packages over likelihoods, minibatch sizes and precisions."""
    with tempfile.TemporaryDirectory() as folder:
        for name, adata in zip(("train", "held_out"), simulate(arguments.cells, arguments.genes), strict=True):
            adata.write_h5ad(Path(folder) / f"{name}.h5ad")
        for pair in range(arguments.pairs):
            for likelihood in arguments.likelihoods:
                for batch_size in arguments.batch_sizes:
                    for precision in ("32-true", "bf16-mixed"):
                        tools = arguments.tools if pair % 2 else list(reversed(arguments.tools))
                        for tool in tools:
                            settings = {"likelihood": likelihood, "batch_size": batch_size, "precision": precision}
                            keep(run_worker(arguments, folder, tool, **settings))


def smoke(keep) -> None:
    """Go the whole road on the CPU, with few cells and without scvi-tools."""
    for row in check("cpu", torch.device("cpu"), n_cells=400):
        keep(row)
    train, held_out = simulate(300, 60)
    options = {"epochs": 3, "batch_size": 64, "likelihood": "nb", "accelerator": "cpu", "device": "cpu"}
    for precision in ("32-true", "bf16-mixed"):
        arguments = argparse.Namespace(precision=precision, **options)
        named = {"tool": "scvae-ext", "likelihood": "nb", "batch_size": 64, "precision": precision}
        keep({**named, **measure("scvae-ext", arguments, train, held_out)})


def main() -> None:
    """Check, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 1024, 8192])
    parser.add_argument("--likelihoods", nargs="+", default=["nb", "zinb"])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--table", action="store_true", help="only print what has been measured")
    parser.add_argument("--smoke", action="store_true", help="the same road on the CPU, in seconds; no row is kept")
    for hidden in ("worker", "counts", "likelihood", "precision", "batch-size"):
        parser.add_argument(f"--{hidden}", type=int if hidden == "batch-size" else str, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.accelerator, arguments.device = "cuda", "cuda:0"
    if arguments.worker:
        print("RESULT" + json.dumps(worker(arguments)))
        return
    if arguments.table:
        print(table([json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []))
        return
    rows: list[dict[str, object]] = []

    def show(row: dict[str, object]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)

    def keep(row: dict[str, object]) -> None:
        show(row)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            print(json.dumps({**row, "machine": machine}), file=file)

    has_gpu = torch.cuda.is_available()
    machine = describe(torch.cuda.get_device_name() if has_gpu else "CPU, no GPU measured")
    if arguments.smoke or not has_gpu:
        if not arguments.smoke:
            print("There is no GPU of CUDA here, so nothing can be measured; this is --smoke, on the CPU.")
        smoke(show)
    else:
        for row in check("cuda", torch.device("cuda:0"), n_cells=4000):
            keep(row)
        if all(row["passed"] for row in rows):
            measure_everything(arguments, keep)
    print(f"\n{machine}\n{table(rows)}")
    failed = [str(row["check"]) for row in rows if not row.get("passed", True)]
    if failed:
        raise SystemExit(f"Checks failed, so nothing was timed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
