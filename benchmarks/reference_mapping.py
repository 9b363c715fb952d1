"""Cells of a batch that a model has never seen, mapped onto it: load_query_data beside scArches (scvi-tools).

Each batch of each dataset is left out in turn. A reference is trained on the others, and cells of the new batch are
mapped onto it; one in five is held out and only embedded. Figures are

``elbo``
    of the held-out cells, in nats per cell (negative binomial in all tools, 20 samples);
``accuracy``, ``mean over types``
    of labels taken from the 15 nearest cells of the reference, or predicted by the tool where it predicts labels;
``mixing``
    how many of a new cell's 30 nearest neighbours among cells of its own type are of the reference, in proportion to
    how many of all are (one if mixed at random), and ``silhouette``, one minus the absolute silhouette of new and old
    cells within a type.

``encoder alone`` is load_query_data without training, ``columns alone`` has the shifts of genes held at zero and leaves
no novel cells out, which is what scArches trains; both share the reference of ``scvae-ext``. ``all cells`` is a model
trained on the reference and the new cells together. scArches is
as the guide of scvi-tools has it (two layers, layer normalisation, covariates in the encoder, dropout 0.2; 200 epochs
without weight decay on the new cells). ``labels`` is SemiSupervisedVAE, ``scANVI`` its counterpart.

``--novel`` takes a type of cells out of the reference that the new batch has, and asks how well what a tool says tells
its cells from the others (area under the receiver operating characteristic): ``distance`` is the mean distance to the
15 nearest cells of the reference in any latent space; ``density``, ``counts`` and ``both`` are from get_novelty, where
p is below 0.05 for the share ``flagged`` of novel cells; training leaves out the share ``left out``.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/reference_mapping.py
    SCVAE_EXT_DATA=/path/to/data python benchmarks/reference_mapping.py --novel
    python benchmarks/reference_mapping.py --smoke    # ours alone, on a few simulated cells
    python benchmarks/reference_mapping.py --table    # what is there
"""

import argparse
import json
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from labelled_datasets import LABELLED, LabelledDataset
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, silhouette_samples
from sklearn.neighbors import NearestNeighbors

RESULTS = Path(__file__).parent / "results" / "reference_mapping.jsonl"
DATASETS = (
    "pbmc_3tech_1767genes",
    "pbmc_batches",
    "mixology_cross_protocol",
    "kang_ifnb_muscat1556",
    "kang_ifnb_2000",
)
NOVEL_DATASETS = ("pbmc_3tech_1767genes",)
UNLABELLED = ("unlabelled", "unknown", "nan")
FEWEST_CELLS, FEWEST_OF_TYPE, FEWEST_NOVEL = 50, 15, 20
N_NEIGHBORS, N_MIXED = 15, 30
SIGNIFICANT = 0.05
SCARCHES = {
    "gene_likelihood": "nb",
    "n_layers": 2,
    "dropout_rate": 0.2,
    "encode_covariates": True,
    "use_layer_norm": "both",
    "use_batch_norm": "none",
}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
KEYS = ["dataset", "query", "removed", "tool", "seed"]


class Simulated(LabelledDataset):
    """Simulated counts of three batches, in place of a file."""

    def load(self) -> ad.AnnData:
        import scvae_ext as sv

        return sv.datasets.synthetic_counts(450, 60, n_types=2, n_batches=3)


class Task:
    """Cells of a reference, of a new batch to map, and of all of that batch.

    Parameters
    ----------
    dataset, query
        Which, and its batch that is new.
    removed
        Type that the reference lacks, or nothing.
    seed
        Of the cells that are held out.
    """

    def __init__(self, dataset: LabelledDataset, query: str, removed: str, seed: int) -> None:
        adata = dataset.load()
        self.batch_key, self.labels_key, self.removed = dataset.batch_key, dataset.labels_key, removed
        self.trained = None
        labels = adata.obs[self.labels_key].astype(str)
        is_new = (adata.obs[self.batch_key] == query).to_numpy()
        is_left = (labels != removed).to_numpy()
        if removed:
            # Cells without a label may be of that type.
            is_left &= ~labels.isin(UNLABELLED).to_numpy()
        reference = adata[~is_new & is_left].copy()
        sizes = reference.obs[self.batch_key].astype(str).map(reference.obs[self.batch_key].astype(str).value_counts())
        self.reference = reference[(sizes > 1).to_numpy()].copy()
        self.query = adata[is_new].copy()
        order = np.random.default_rng(seed).permutation(self.query.n_obs)
        n_held_out = self.query.n_obs // 5
        self.mapped = self.query[np.sort(order[n_held_out:])].copy()
        self.held_out = self.query[np.sort(order[:n_held_out])].copy()

    def labels(self, adata: ad.AnnData) -> np.ndarray:
        """Return labels as text, nothing where there is none."""
        labels = adata.obs[self.labels_key].astype(str)
        return labels.where(~labels.isin(UNLABELLED), "").to_numpy()


def trained_reference(task: Task, seed: int, epochs: int | None):
    """Train the reference, once for all tools."""
    import scvae_ext as sv

    if task.trained is None:
        sv.SCVAE.setup_anndata(task.reference, batch_key=task.batch_key)
        reference = sv.SCVAE(task.reference, seed=seed)
        start = time.perf_counter()
        reference.train(epochs, **QUIET)
        task.trained = reference, time.perf_counter() - start
    return task.trained


@contextmanager
def without_shifts():
    """Keep shifts of genes at zero."""
    from scvae_ext.models.mixins import reference
    from scvae_ext.modules import KeptReference
    from scvae_ext.modules.kept_reference import shifts_of_batches

    start, keep_fixed = reference.start_new_batches, KeptReference.keep_fixed

    def keep_all_but_columns(view):
        keep_fixed(view)
        for shifts in shifts_of_batches(view.vae, view.batches, view.n_reference):
            shifts.weight.grad[:, shifts.columns] = 0

    reference.start_new_batches, KeptReference.keep_fixed = lambda *_: None, keep_all_but_columns
    try:
        yield
    finally:
        reference.start_new_batches, KeptReference.keep_fixed = start, keep_fixed


def by_ours(task: Task, seed: int, epochs: int | None, *, train: bool = True, shifts: bool = True, novel: bool = False):
    """Map by load_query_data; return latent states of reference and query, and figures."""
    import scvae_ext as sv

    reference, seconds = trained_reference(task, seed, epochs)
    start = time.perf_counter()
    model = sv.SCVAE.load_query_data(task.mapped, reference, exclude_novel=shifts)
    if train:
        with nullcontext() if shifts else without_shifts():
            model.train(epochs, **QUIET)
    row = {"seconds_of_reference": seconds, "seconds": time.perf_counter() - start}
    row |= {"elbo": float(model.get_elbo(task.held_out, n_samples=20)), "left_out": len(model.novel_cells)}
    latent = [model.get_latent_representation(cells, key_added=None) for cells in (task.reference, task.query)]
    if novel:
        is_novel = task.labels(task.mapped) == task.removed
        left_out = task.mapped.obs_names.isin(model.novel_cells)
        row |= {
            "left_out_novel": float(left_out[is_novel].mean()),
            "left_out_others": float(left_out[~is_novel].mean()),
        }
        model.adata = task.reference
        row |= novelty_figures(model.get_novelty(task.query, key_added=None).to_frame(), task)
    return latent, row


def by_ours_on_all(task: Task, seed: int, epochs: int | None):
    """Train on the cells of both."""
    import scvae_ext as sv

    both = ad.concat([task.reference, task.mapped])
    sv.SCVAE.setup_anndata(both, batch_key=task.batch_key)
    model = sv.SCVAE(both, seed=seed)
    start = time.perf_counter()
    model.train(epochs, **QUIET)
    row = {"seconds": time.perf_counter() - start, "elbo": float(model.get_elbo(task.held_out, n_samples=20))}
    return [model.get_latent_representation(cells, key_added=None) for cells in (task.reference, task.query)], row


def by_ours_with_labels(task: Task, seed: int, epochs: int | None):
    """Map onto a model that knows labels, and predict those of the new cells."""
    import scvae_ext as sv

    labels = pd.Series(task.labels(task.reference), index=task.reference.obs_names)
    task.reference.obs["known"] = labels.where(labels != "")
    sv.SemiSupervisedVAE.setup_anndata(task.reference, labels_key="known", batch_key=task.batch_key)
    reference = sv.SemiSupervisedVAE(task.reference, seed=seed)
    start = time.perf_counter()
    reference.train(epochs, **QUIET)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    model = sv.SemiSupervisedVAE.load_query_data(task.mapped, reference)
    model.train(epochs, **QUIET)
    row = {"seconds_of_reference": seconds, "seconds": time.perf_counter() - start}
    return model.predict(task.query, key_added=None).astype(str).to_numpy(), row


def by_scarches(task: Task, seed: int, epochs: int | None):
    """Map as the guide of scvi-tools has it."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(task.reference, batch_key=task.batch_key)
    reference = scvi.model.SCVI(task.reference, **SCARCHES)
    start = time.perf_counter()
    reference.train(epochs, **QUIET)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    model = scvi.model.SCVI.load_query_data(task.mapped, reference)
    model.train(epochs or 200, plan_kwargs={"weight_decay": 0.0}, **QUIET)
    row = {"seconds_of_reference": seconds, "seconds": time.perf_counter() - start}
    row["elbo"] = -abs(float(np.mean([model.get_elbo(task.held_out) for _ in range(20)])))
    return [reference.get_latent_representation(), model.get_latent_representation(task.query)], row


def by_scanvi(task: Task, seed: int, epochs: int | None):
    """Map onto scANVI as the guide of scvi-tools has it, and predict labels."""
    import scvi

    scvi.settings.seed = seed
    task.reference.obs["known"] = pd.Categorical(
        pd.Series(task.labels(task.reference), index=task.reference.obs_names).replace("", UNLABELLED[0])
    )
    scvi.model.SCVI.setup_anndata(task.reference, batch_key=task.batch_key, labels_key="known")
    start = time.perf_counter()
    base = scvi.model.SCVI(task.reference, **SCARCHES)
    base.train(epochs, **QUIET)
    reference = scvi.model.SCANVI.from_scvi_model(base, UNLABELLED[0])
    reference.train(epochs or 20, n_samples_per_label=100, **QUIET)
    seconds = time.perf_counter() - start
    task.query.obs["known"], task.mapped.obs["known"] = UNLABELLED[0], UNLABELLED[0]
    start = time.perf_counter()
    model = scvi.model.SCANVI.load_query_data(task.mapped, reference)
    model.train(epochs or 100, plan_kwargs={"weight_decay": 0.0}, check_val_every_n_epoch=10, **QUIET)
    row = {"seconds_of_reference": seconds, "seconds": time.perf_counter() - start}
    return np.asarray(model.predict(task.query)).astype(str), row


TOOLS = {
    "encoder alone": lambda *given, **more: by_ours(*given, train=False, **more),
    "columns alone": lambda *given, **more: by_ours(*given, shifts=False, **more),
    "scvae-ext": by_ours,
    "scvae-ext, all cells": by_ours_on_all,
    "scArches": by_scarches,
    "scvae-ext, labels": by_ours_with_labels,
    "scANVI": by_scanvi,
}
PEERS = ("scArches", "scANVI")
NOVEL_TOOLS = ("encoder alone", "columns alone", "scvae-ext", "scArches")


def label_figures(predicted: np.ndarray, labels: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """How many cells whose type the reference has got their label."""
    asked = np.isin(labels, known[known != ""])
    with warnings.catch_warnings():
        # Types may be predicted that the query does not have.
        warnings.simplefilter("ignore")
        mean = balanced_accuracy_score(labels[asked], predicted[asked])
    return {"accuracy": float((predicted == labels)[asked].mean()), "mean_over_types": float(mean)}


def voted(old: np.ndarray, new: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Labels of the nearest cells of the reference that have one."""
    labelled = known != ""
    _, nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(old[labelled]).kneighbors(new)
    names, codes = np.unique(known[labelled], return_inverse=True)
    votes = np.stack([(codes[nearest] == code).sum(1) for code in range(len(names))], axis=1)
    return names[votes.argmax(1)]


def mixing_figures(old: np.ndarray, new: np.ndarray, known: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well new cells of a type lie among old ones, averaged over new cells and over types."""
    mixing, weights, silhouettes = [], [], []
    for name in np.unique(labels[labels != ""]):
        both = np.concatenate([old[known == name], new[labels == name]])
        is_new = np.arange(len(both)) >= (known == name).sum()
        if min((~is_new).sum(), is_new.sum()) < FEWEST_OF_TYPE:
            continue
        n = min(N_MIXED, len(both) - 1)
        _, nearest = NearestNeighbors(n_neighbors=n + 1).fit(both).kneighbors(both[is_new])
        mixing.append((~is_new)[nearest[:, 1:]].mean() * (len(both) - 1) / (~is_new).sum())
        weights.append(is_new.sum())
        silhouettes.append(1 - np.abs(silhouette_samples(both, is_new)).mean())
    if not mixing:
        return {}
    return {"mixing": float(np.average(mixing, weights=weights)), "silhouette": float(np.mean(silhouettes))}


def novelty_figures(frame: pd.DataFrame, task: Task) -> dict[str, float]:
    """How well get_novelty tells cells of the type that was taken out, and how many it flags."""
    is_novel, asked = task.is_novel, task.labels(task.query) != ""
    is_novel, frame = is_novel[asked], frame[asked]
    flagged = (frame["p"] < SIGNIFICANT).to_numpy()
    return {
        "density": float(roc_auc_score(is_novel, -frame["latent_log_density"])),
        "counts": float(roc_auc_score(is_novel, -frame["elbo_z"])),
        "both": float(roc_auc_score(is_novel, -frame["p"])),
        "flagged": float(flagged[is_novel].mean()),
        "others_flagged": float(flagged[~is_novel].mean()),
    }


def measure(task: Task, tool: str, removed: str, seed: int, epochs: int | None) -> dict[str, float]:
    """Run a tool and return its figures."""
    labels, known = task.labels(task.query), task.labels(task.reference)
    more = {"novel": True} if removed and tool not in PEERS else {}
    task.is_novel = labels == removed
    result, row = TOOLS[tool](task, seed, epochs, **more)
    if isinstance(result, np.ndarray):
        return row | label_figures(result, labels, known)
    old, new = result
    if removed:
        distance = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(old).kneighbors(new)[0].mean(1)
        asked = labels != ""
        return row | {"distance": float(roc_auc_score(task.is_novel[asked], distance[asked]))}
    return row | label_figures(voted(old, new, known), labels, known) | mixing_figures(old, new, known, labels)


def questions(dataset: LabelledDataset, novel: bool) -> list[tuple[str, str]]:
    """Return the batches that are left out, each with the type that the reference lacks, or nothing."""
    adata = dataset.load()
    labels = adata.obs[dataset.labels_key].astype(str)
    batches = adata.obs[dataset.batch_key].astype(str)
    is_labelled = ~labels.isin(UNLABELLED)
    queries = [name for name in sorted(batches.unique()) if (is_labelled & (batches == name)).sum() >= FEWEST_CELLS]
    if not novel:
        return [(name, "") for name in queries]
    n_new = {name: labels[is_labelled & (batches == name)].value_counts() for name in queries}
    n_old = {name: labels[is_labelled & (batches != name)].value_counts() for name in queries}
    return [
        (name, removed)
        for name in queries
        for removed in sorted(n_new[name].index)
        if min(n_new[name][removed], n_old[name].get(removed, 0)) >= FEWEST_NOVEL
    ]


def table(rows: pd.DataFrame) -> str:
    """Means over new batches and seeds as Markdown; ELBOs as differences to the encoder alone."""
    rows = rows[rows["removed"] == ""].copy()
    alone = rows[rows["tool"] == "encoder alone"].set_index(["dataset", "query", "seed"])["elbo"]
    runs = pd.MultiIndex.from_frame(rows[["dataset", "query", "seed"]])
    rows["gain"] = rows["elbo"] - alone.reindex(runs).to_numpy()
    lines = [
        "| dataset | tool | runs | ELBO | accuracy | mean over types | mixing | silhouette | s, reference | s, new |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for dataset in rows["dataset"].unique():
        for tool in [tool for tool in TOOLS if tool in set(rows["tool"])]:
            of = rows[(rows["dataset"] == dataset) & (rows["tool"] == tool)]
            if len(of):
                means = of.mean(numeric_only=True)
                cells = [_shown(means.get("gain"), "+.1f")]
                cells += [_shown(means.get(name), ".3f") for name in ("accuracy", "mean_over_types")]
                cells += [_shown(means.get(name), ".2f") for name in ("mixing", "silhouette")]
                cells += [_shown(means.get(name), ".0f") for name in ("seconds_of_reference", "seconds")]
                lines.append(f"| {dataset} | {tool} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_novelty(rows: pd.DataFrame) -> str:
    """Figures for each type that was taken out, means over new batches and seeds, as Markdown."""
    rows = rows[rows["removed"] != ""]
    names = ("distance", "density", "counts", "both", "flagged", "others_flagged", "left_out_novel", "left_out_others")
    lines = [
        f"| dataset | type | tool | runs | {' | '.join(names).replace('_', ' ')} |",
        f"|---|---|---|---:{'|---:' * len(names)}|",
    ]
    for (dataset, removed, tool), of in rows.groupby(["dataset", "removed", "tool"], sort=False):
        cells = [_shown(of[name].mean() if name in of else None, ".2f") for name in names]
        lines.append(f"| {dataset} | {removed} | {tool} | {len(of)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None or np.isnan(value) else format(value, form)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS)
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--novel", action="store_true", help="take types out of the reference")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the finished runs and stop")
    parser.add_argument("--smoke", action="store_true", help="run ours on a few simulated cells, and keep nothing")
    given = parser.parse_args()
    datasets = [LABELLED[name] for name in given.datasets or (NOVEL_DATASETS if given.novel else DATASETS)]
    tools = given.tools or (NOVEL_TOOLS if given.novel else list(TOOLS))
    kinds, epochs = [given.novel], None
    if given.smoke:
        datasets, given.seeds, epochs, kinds = [Simulated("simulated", "batch")], [0], 2, [False, True]
        given.results = Path(tempfile.mkdtemp()) / "reference_mapping.jsonl"
        tools = [tool for tool in tools if tool not in PEERS]
    done = pd.read_json(given.results, lines=True) if given.results.exists() else pd.DataFrame(columns=KEYS)
    finished = set(done[KEYS].astype(str).itertuples(index=False, name=None))
    for seed in [] if given.table else given.seeds:
        for dataset, novel in ((dataset, novel) for dataset in datasets for novel in kinds):
            for query, removed in questions(dataset, novel)[: 2 if given.smoke else None]:
                task = None
                for tool in [tool for tool in tools if not novel or tool in NOVEL_TOOLS]:
                    row = dict(zip(KEYS, (dataset.name, query, removed, tool, seed), strict=True))
                    if tuple(map(str, row.values())) in finished:
                        continue
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        task = Task(dataset, query, removed, seed) if task is None or tool in PEERS else task
                        row |= {"n_query": task.query.n_obs, **measure(task, tool, removed, seed, epochs)}
                    row |= {
                        "version": version("scvi-tools" if tool in PEERS else "scvae-ext"),
                        "torch": version("torch"),
                    }
                    print(json.dumps(row), flush=True)
                    given.results.parent.mkdir(exist_ok=True)
                    with given.results.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
    rows = pd.read_json(given.results, lines=True) if given.results.exists() else pd.DataFrame()
    if len(rows):
        rows["removed"] = rows["removed"].fillna("")
        print(table(rows), table_of_novelty(rows), sep="\n\n")


if __name__ == "__main__":
    main()
