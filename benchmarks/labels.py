"""Labels of cells from some that are known: SemiSupervisedVAE beside scANVI and two simple classifiers.

Labels are hidden, each tool gets all cells and the labels that are left, and its predictions for the hidden ones are
compared with what they were. Hidden are

``transfer``
    all labels of a batch, or of several: of PBMCs measured with another chemistry (``pbmc_batches``,
    ``pbmc_3tech_1767genes``) and of five cell lines, known by genotype, measured by other protocols
    (``mixology_cross_protocol``);
``few``
    all but ten labels of each type, or half of them where there are fewer than twenty (``citeseq_cbmc_2000genes``,
    ``bladder_mca_2100``).

Accuracy, its mean over types, the log-probability of the right label in nats (none below log 1e-6, which is what a tool
gets that rules the truth out), and the expected calibration error in ten bins of equal width of the probability of the
predicted label: the mean over cells of how far the accuracy of a bin is from its mean probability.

scANVI is trained as its guide has it: scVI by its defaults, then ``SCANVI.from_scvi_model`` by its own. ``neighbours``
are the 15 nearest labelled cells in the latent space of ``SCVAE``; ``logistic`` is a logistic regression on
log-normalised values (scikit-learn's defaults, no correction of batches).

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/labels.py
    python benchmarks/labels.py --smoke    # ours alone, on a few simulated cells
    python benchmarks/labels.py --table    # what is there
"""

import argparse
import json
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from labelled_datasets import LABELLED, LabelledDataset

RESULTS = Path(__file__).parent / "results" / "labels.jsonl"
UNLABELLED = "unlabelled"
N_KNOWN = 10
N_NEIGHBORS = 15
LEAST_PROBABILITY = 1e-6
N_BINS = 10


@dataclass(frozen=True)
class Task:
    """Whose labels are hidden: all of some batches, or all but a few of each type."""

    dataset: str
    hidden_batches: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Which of the two."""
        return "transfer" if self.hidden_batches else "few"

    def load(self) -> tuple[ad.AnnData, LabelledDataset]:
        """Read the cells."""
        dataset = LABELLED[self.dataset]
        return dataset.load(), dataset

    def hide(self, adata: ad.AnnData, dataset: LabelledDataset, seed: int) -> np.ndarray:
        """Write the known labels into ``obs["known"]``, and return which cells have a hidden one."""
        labels = adata.obs[dataset.labels_key].astype(str).to_numpy()
        has_label = labels != UNLABELLED
        if self.hidden_batches:
            known = has_label & ~adata.obs[dataset.batch_key].isin(self.hidden_batches).to_numpy()
            # Types that only hidden batches have can be predicted by nobody.
            has_label &= np.isin(labels, labels[known])
        else:
            known = np.zeros(adata.n_obs, dtype=bool)
            random = np.random.default_rng(seed)
            for name in np.unique(labels[has_label]):
                cells = np.flatnonzero(labels == name)
                known[random.choice(cells, min(N_KNOWN, len(cells) // 2), replace=False)] = True
        adata.obs["known"] = pd.Categorical(np.where(known, labels, UNLABELLED))
        return has_label & ~known


class Simulated(Task):
    """Simulated counts of two batches, in place of a file."""

    def load(self) -> tuple[ad.AnnData, LabelledDataset]:
        import scvae_ext as sv

        return sv.datasets.synthetic_counts(300, 60, n_types=3, n_batches=2), LabelledDataset("simulated", "batch")


TASKS = [
    Task("pbmc_batches", ("pbmc4k_v2",)),
    Task("pbmc_3tech_1767genes", ("5p",)),
    Task(
        "mixology_cross_protocol",
        ("sc_celseq2", "sc_celseq2_5cl_p1", "sc_celseq2_5cl_p2", "sc_celseq2_5cl_p3", "sc_dropseq"),
    ),
    Task("citeseq_cbmc_2000genes"),
    Task("bladder_mca_2100"),
]


def by_ours(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None) -> pd.DataFrame:
    """Train SemiSupervisedVAE by its defaults."""
    import scvae_ext as sv

    sv.SemiSupervisedVAE.setup_anndata(adata, labels_key="known", unlabeled_category=UNLABELLED, batch_key=batch_key)
    model = sv.SemiSupervisedVAE(adata, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model.predict(soft=True, key_added=None)


def by_scanvi(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None) -> pd.DataFrame:
    """Train scVI, then scANVI."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key, labels_key="known")
    base = scvi.model.SCVI(adata)
    base.train(epochs, accelerator="cpu", enable_progress_bar=False)
    model = scvi.model.SCANVI.from_scvi_model(base, UNLABELLED)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model.predict(soft=True)


def by_neighbours(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None) -> pd.DataFrame:
    """Train SCVAE by its defaults, and count labels among the nearest cells that have one."""
    from sklearn.neighbors import KNeighborsClassifier

    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata, batch_key=batch_key)
    model = sv.SCVAE(adata, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return _by_classifier(adata, model.get_latent_representation(key_added=None), KNeighborsClassifier(N_NEIGHBORS))


def by_logistic_regression(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None) -> pd.DataFrame:
    """Classify by log-normalised values."""
    from sklearn.linear_model import LogisticRegression

    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    return _by_classifier(adata, normalised.X, LogisticRegression(max_iter=1000))


def _by_classifier(adata: ad.AnnData, values, classifier) -> pd.DataFrame:
    known = (adata.obs["known"] != UNLABELLED).to_numpy()
    classifier.fit(values[known], adata.obs["known"].astype(str)[known])
    return pd.DataFrame(classifier.predict_proba(values), index=adata.obs_names, columns=classifier.classes_)


TOOLS = {
    "scvae-ext": by_ours,
    "scANVI": by_scanvi,
    "neighbours": by_neighbours,
    "logistic": by_logistic_regression,
}


def figures(probabilities: pd.DataFrame, truth: np.ndarray) -> dict[str, float]:
    """How well probabilities of labels fit the truth."""
    values = probabilities.to_numpy(dtype=float)
    values = values / values.sum(axis=1, keepdims=True)
    column = pd.Index(probabilities.columns.astype(str)).get_indexer(truth)
    right = values.argmax(axis=1) == column
    of_truth = values[np.arange(len(truth)), column]
    stated = values.max(axis=1)
    bins = np.minimum((stated * N_BINS).astype(int), N_BINS - 1)
    gaps = pd.DataFrame({"bin": bins, "gap": right - stated}).groupby("bin")["gap"].sum().abs()
    return {
        "accuracy": float(right.mean()),
        "mean_over_types": float(pd.Series(right).groupby(truth).mean().mean()),
        "log_probability": float(np.log(of_truth.clip(LEAST_PROBABILITY)).mean()),
        "calibration_error": float(gaps.sum() / len(truth)),
    }


def table(rows: pd.DataFrame) -> str:
    """Means over the seeds that all tools have finished, as Markdown."""
    n_tools = rows.groupby("dataset")["tool"].transform("nunique")
    rows = rows[rows.groupby(["dataset", "seed"])["tool"].transform("nunique") == n_tools]
    lines = [
        "| labels hidden | dataset | tool | seeds | accuracy | mean over types | log-probability | calibration error "
        "| s |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (kind, dataset, tool), of_tool in rows.groupby(["kind", "dataset", "tool"], sort=False):
        means = of_tool.mean(numeric_only=True)
        cells = [f"{means[name]:.3f}" for name in ("accuracy", "mean_over_types", "log_probability")]
        cells += [f"{means.calibration_error:.3f}", f"{means.seconds:.0f}"]
        lines.append(f"| {kind} | {dataset} | {tool} | {len(of_tool)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=[task.dataset for task in TASKS])
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="run ours on a few simulated cells, and keep nothing")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs and stop")
    arguments = parser.parse_args()
    tasks = [task for task in TASKS if task.dataset in arguments.datasets]
    if arguments.smoke:
        tasks, arguments.seeds, arguments.epochs = [Simulated("simulated", ("batch_1",))], [0], 2
        arguments.tools = [tool for tool in TOOLS if tool != "scANVI"]
        arguments.results = Path(tempfile.mkdtemp()) / "labels.jsonl"
    done = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
    for seed in [] if arguments.table else arguments.seeds:
        for task in tasks:
            adata, dataset = task.load()
            for tool in arguments.tools:
                if len(done) and (done[["dataset", "tool", "seed"]] == (task.dataset, tool, seed)).all(axis=1).any():
                    continue
                hidden = task.hide(adata, dataset, seed)
                truth = adata.obs[dataset.labels_key].astype(str).to_numpy()[hidden]
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    probabilities = TOOLS[tool](adata.copy(), dataset.batch_key, seed, arguments.epochs)
                row = {"kind": task.kind, "dataset": task.dataset, "tool": tool, "seed": seed, "n_hidden": len(truth)}
                row |= figures(probabilities[hidden], truth) | {"seconds": time.perf_counter() - start}
                row |= {"version": version("scvi-tools" if tool == "scANVI" else "scvae-ext")}
                print(json.dumps(row | {"torch": version("torch")}), flush=True)
                arguments.results.parent.mkdir(exist_ok=True)
                with arguments.results.open("a") as stream:
                    stream.write(json.dumps(row | {"torch": version("torch")}) + "\n")
    print(table(pd.read_json(arguments.results, lines=True)))


if __name__ == "__main__":
    main()
