"""Wall time until the held-out ELBO that scvi-tools ends at is reached, both packages with their own defaults.

The peer trains by its defaults, and its ELBO of one tenth of the cells, which neither package trains on, is taken at
the end. scvae_ext trains by its defaults as well, and the ELBO of the same cells is taken at every validation, with
the clock stopped; what counts is the time of the first that is as good. Its default training does not end there: the
time and the ELBO of the whole run stand beside it.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/time_to_elbo.py     # half an hour; goes on where it stopped
    python benchmarks/time_to_elbo.py --table
    python benchmarks/time_to_elbo.py --smoke                          # seconds, to see whether it runs
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from labelled_datasets import LABELLED
from workers import TOOLS, installed_tools, machine, measure, report

RESULTS = Path(__file__).parent / "results" / "time_to_elbo.jsonl"
DATASETS = ["pbmc3k", "multiome_bmmc_neurips500", "bladder_mca_2100"]
N_SAMPLES = 10


def train_scvae_ext(train, held_out, batch_key: str | None) -> list[tuple[float, float]]:
    """Return seconds of training and held-out ELBO at every validation, and last those of the weights that are kept."""
    from lightning.pytorch.callbacks import Callback

    import scvae_ext as sv

    sv.SCVAE.setup_anndata(train, batch_key=batch_key)
    path: list[tuple[float, float]] = []

    class StoppedClock(Callback):
        """Scores the held-out cells, and leaves that out of the time."""

        def __init__(self) -> None:
            self.begin, self.paused = time.perf_counter(), 0.0

        def seconds(self) -> float:
            return time.perf_counter() - self.begin - self.paused

        def on_validation_end(self, trainer, module) -> None:
            seconds, start = self.seconds(), time.perf_counter()
            model.is_trained = True  # the getters are asked before training has ended
            path.append((seconds, float(model.get_elbo(held_out, n_samples=N_SAMPLES))))
            self.paused += time.perf_counter() - start

    start = time.perf_counter()
    model = sv.SCVAE(train)
    clock = StoppedClock()
    clock.begin = start
    model.train(accelerator="cpu", enable_progress_bar=False, callbacks=[clock])
    path.append((clock.seconds(), float(model.get_elbo(held_out, n_samples=N_SAMPLES))))
    return path


def train_scvi_tools(train, held_out, batch_key: str | None) -> list[tuple[float, float]]:
    """Return seconds of training and held-out ELBO at its end."""
    import scvi

    scvi.settings.verbosity = 40
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(train, batch_key=batch_key)
    start = time.perf_counter()
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)
    seconds = time.perf_counter() - start
    return [(seconds, float(np.mean([float(model.get_elbo(held_out)) for _ in range(N_SAMPLES)])))]


def worker(arguments: argparse.Namespace) -> None:
    """Train one package and report its path."""
    warnings.simplefilter("ignore")
    if arguments.smoke:
        import scvae_ext as sv

        adata, batch_key = sv.datasets.synthetic_counts(300, 60, n_types=3), None
        train, held_out = adata[:270].copy(), adata[270:].copy()
    else:
        dataset = LABELLED[arguments.dataset]
        train, held_out = dataset.split(dataset.load(), seed=0)
        batch_key = dataset.batch_key
    path = {"scvae-ext": train_scvae_ext, "scvi-tools": train_scvi_tools}[arguments.worker](train, held_out, batch_key)
    report({"tool": arguments.worker, "dataset": arguments.dataset, "path": path})


def table(rows: pd.DataFrame) -> str:
    """Return the medians over the runs of each dataset, as Markdown."""
    lines = [
        "| dataset | scvi-tools, s | its ELBO | scvae_ext as good after, s | ratio (min to max) "
        "| its whole run, s | its ELBO |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for dataset, runs in rows.groupby("dataset", sort=False):
        ours, peer = (runs.loc[runs["tool"] == tool, "path"].tolist() for tool in TOOLS)
        pairs = list(zip(ours, peer, strict=False))
        if not pairs:
            continue
        reached = [
            min((seconds for seconds, elbo in path[:-1] if elbo >= theirs[-1][1]), default=float("nan"))
            for path, theirs in pairs
        ]
        ratios = [theirs[-1][0] / seconds for (_, theirs), seconds in zip(pairs, reached, strict=True)]
        whole, target = (np.median([path[side][-1] for path in pairs], axis=0) for side in (0, 1))
        lines.append(
            f"| {dataset} | {target[0]:.0f} | {target[1]:.1f} | {np.median(reached):.1f} "
            f"| {np.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}) | {whole[0]:.1f} | {whole[1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=list(LABELLED))
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="tiny, and without the peer where it is not installed")
    parser.add_argument("--worker", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--dataset", default="synthetic", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    if arguments.smoke:
        for tool in installed_tools():
            print(tool, measure(__file__, ["--smoke", "--worker", tool], arguments.threads)["path"][-1])
        return
    rows = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
    if not arguments.table:
        for dataset in arguments.datasets:
            for tool in TOOLS:
                done = int(((rows["dataset"] == dataset) & (rows["tool"] == tool)).sum()) if len(rows) else 0
                for _ in range(done, arguments.pairs):
                    row = measure(__file__, ["--worker", tool, "--dataset", dataset], arguments.threads)
                    print(tool, dataset, row["path"][-1], flush=True)
                    with arguments.results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
        rows = pd.read_json(arguments.results, lines=True)
        print(machine(arguments.threads))
    print(table(rows))


if __name__ == "__main__":
    main()
