"""Genes and accessible chromatin: MultiomeVAE beside MultiVI, and accessibility that was hidden against what was seen.

Both tools by their own defaults with 20 latent dimensions, on two data sets: 500 cells of bone marrow (1,129 genes, 561
peaks, two batches, 21 types), of which more were not to be had, and 3,000 simulated cells (500 genes, 1,000 peaks, two
batches, five types) from ``datasets.synthetic_counts``. The simulation has the link of MultiomeVAE, which is an
advantage to it.

``joint``
    All cells have both. Agreement of the latent space with the known types, beside that of genes alone (``SCVAE``).
``imputation``
    Accessibility of a random half of the cells is hidden, which are then a batch of their own. Each tool predicts it
    from the genes. Area under the ROC curve of the predicted probability within a peak, over the hidden cells: the mean
    over peaks that are accessible in at least twenty of them. The baseline averages the 30 nearest cells with peaks by
    20 principal components of the genes.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/multiome.py
    python benchmarks/multiome.py --smoke    # ours alone, on a few simulated cells
    python benchmarks/multiome.py --table    # what is there
"""

import argparse
import json
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from labelled_datasets import DATA
from quality import agreement

RESULTS = Path(__file__).parent / "results" / "multiome.jsonl"
KEY = "accessibility"
N_LATENT = 20
N_NEIGHBORS = 30
LEAST_CELLS = 20


def load(dataset: str, smoke: bool) -> ad.AnnData:
    """Read the bone marrow cells, or simulate some."""
    import scvae_ext as sv

    if smoke:
        return sv.datasets.synthetic_counts(300, 50, n_batches=2, n_peaks=60)
    if dataset == "simulated":
        return sv.datasets.synthetic_counts(3000, 500, n_batches=2, n_peaks=1000)
    path = DATA / "multiome_bmmc_neurips500.h5ad"
    if not path.exists():
        raise SystemExit(f"{path} is missing: set SCVAE_EXT_DATA to the folder that holds it")
    return ad.read_h5ad(path)


def hide(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Take accessibility away from a random half of the cells, whose batches are then their own."""
    hidden = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    partial = adata.copy()
    partial.obsm[KEY] = sp.diags((~hidden).astype(np.float32)) @ sp.csr_matrix(adata.obsm[KEY])
    partial.obs["modality"] = np.where(hidden, "genes", "both")
    return partial, hidden


def fit_ours(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None):
    """Train MultiomeVAE by its defaults."""
    import scvae_ext as sv

    others = ["batch"] if batch_key == "modality" else None
    sv.MultiomeVAE.setup_anndata(
        adata, batch_key=batch_key, categorical_covariate_keys=others, accessibility_obsm_key=KEY
    )
    model = sv.MultiomeVAE(adata, n_latent=N_LATENT, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def fit_genes_alone(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None):
    """Train SCVAE by its defaults."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata, batch_key=batch_key)
    model = sv.SCVAE(adata, n_latent=N_LATENT, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def fit_multivi(adata: ad.AnnData, batch_key: str | None, seed: int, epochs: int | None):
    """Train MultiVI by its defaults."""
    import mudata
    import scvi

    scvi.settings.seed = seed
    mudata.set_options(pull_on_update=False)
    peaks = ad.AnnData((sp.csr_matrix(adata.obsm[KEY]) > 0).astype(np.float32), obs=adata.obs[[]].copy())
    peaks.var_names = [f"peak_{i}" for i in range(peaks.n_vars)]
    both = mudata.MuData(
        {"rna": ad.AnnData(adata.X.copy(), obs=adata.obs[[]].copy(), var=adata.var[[]]), "atac": peaks}
    )
    both.obs = both.obs.join(adata.obs)
    scvi.model.MULTIVI.setup_mudata(
        both,
        batch_key=batch_key,
        categorical_covariate_keys=["batch"] if batch_key == "modality" else None,
        modalities={"rna_layer": "rna", "atac_layer": "atac"},
    )
    model = scvi.model.MULTIVI(both, n_latent=N_LATENT)
    model.train(**({} if epochs is None else {"max_epochs": epochs}), accelerator="cpu", enable_progress_bar=False)
    return model


FITS = {"scvae-ext": fit_ours, "genes alone": fit_genes_alone, "MultiVI": fit_multivi}


def joint(tool: str, adata: ad.AnnData, seed: int, epochs: int | None) -> dict[str, float]:
    """Agreement of the latent space with known types."""
    start = time.perf_counter()
    model = FITS[tool](adata, "batch", seed, epochs)
    seconds = time.perf_counter() - start
    return {"seconds": seconds} | agreement(model.get_latent_representation(), adata.obs["cell_type"])


def imputation(tool: str, adata: ad.AnnData, seed: int, epochs: int | None) -> dict[str, float]:
    """Area under the ROC curve of hidden accessibility."""
    from sklearn.metrics import roc_auc_score

    partial, hidden = hide(adata, seed)
    start = time.perf_counter()
    if tool == "neighbours":
        predicted = by_neighbours(partial, hidden)
    elif tool == "MultiVI":
        model = fit_multivi(partial, "modality", seed, epochs)
        predicted = np.asarray(
            model.get_normalized_accessibility(indices=np.flatnonzero(hidden), transform_batch="both")
        )
    else:
        model = fit_ours(partial, "modality", seed, epochs)
        predicted = model.get_accessibility(indices=np.flatnonzero(hidden), key_added=None).to_numpy()
    seconds = time.perf_counter() - start
    seen = sp.csr_matrix(adata.obsm[KEY])[hidden].toarray() > 0
    n_open = seen.sum(0)
    scored = np.flatnonzero((n_open >= LEAST_CELLS) & (n_open <= len(seen) - LEAST_CELLS))
    areas = [roc_auc_score(seen[:, peak], predicted[:, peak]) for peak in scored]
    return {"seconds": seconds, "auroc": float(np.mean(areas)), "n_peaks": len(scored)}


def by_neighbours(partial: ad.AnnData, hidden: np.ndarray) -> np.ndarray:
    """Share of the nearest cells with peaks in which each peak is accessible."""
    import scanpy as sc
    from sklearn.neighbors import NearestNeighbors

    genes = ad.AnnData(partial.X.copy())
    sc.pp.normalize_total(genes, target_sum=1e4)
    sc.pp.log1p(genes)
    sc.pp.pca(genes, n_comps=N_LATENT)
    space, seen = genes.obsm["X_pca"], partial.obsm[KEY].toarray()[~hidden] > 0
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(space[~hidden]).kneighbors(space[hidden])[1]
    return seen[nearest].mean(axis=1)


TASKS = {"joint": (joint, list(FITS)), "imputation": (imputation, ["scvae-ext", "MultiVI", "neighbours"])}
DATASETS = ["bone marrow", "simulated"]


def table(rows: pd.DataFrame) -> str:
    """Means over the seeds that all tools have finished, as Markdown."""
    n_tools = rows.groupby(["task", "dataset"])["tool"].transform("nunique")
    rows = rows[rows.groupby(["task", "dataset", "seed"])["tool"].transform("nunique") == n_tools]
    lines = ["| dataset | tool | seeds | ARI | NMI | ASW | s |", "|---|---|---:|---:|---:|---:|---:|"]
    for (dataset, tool), of_tool in rows[rows["task"] == "joint"].groupby(["dataset", "tool"], sort=False):
        means = of_tool.mean(numeric_only=True)
        cells = [*(f"{means[name]:.3f}" for name in ("ari", "nmi", "asw")), f"{means.seconds:.0f}"]
        lines.append(f"| {dataset} | {tool} | {len(of_tool)} | {' | '.join(cells)} |")
    lines += ["", "| dataset | tool | seeds | area under the ROC curve within a peak | s |", "|---|---|---:|---:|---:|"]
    for (dataset, tool), of_tool in rows[rows["task"] == "imputation"].groupby(["dataset", "tool"], sort=False):
        means = of_tool.mean(numeric_only=True)
        lines.append(f"| {dataset} | {tool} | {len(of_tool)} | {means.auroc:.3f} | {means.seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--datasets", nargs="+", default=DATASETS, choices=DATASETS)
    parser.add_argument("--tools", nargs="+", default=[*FITS, "neighbours"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="run ours on a few simulated cells, and keep nothing")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the finished runs and stop")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.tools, arguments.seeds, arguments.epochs = ["scvae-ext", "genes alone", "neighbours"], [0], 2
        arguments.datasets, arguments.results = ["simulated"], Path(tempfile.mkdtemp()) / "multiome.jsonl"
    done = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
    runs = [
        (seed, dataset, task, tool)
        for seed in arguments.seeds
        for dataset in arguments.datasets
        for task in arguments.tasks
        for tool in TASKS[task][1]
        if tool in arguments.tools
    ]
    for seed, dataset, task, tool in [] if arguments.table else runs:
        columns = ["seed", "dataset", "task", "tool"]
        if len(done) and (done[columns] == (seed, dataset, task, tool)).all(axis=1).any():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figures = TASKS[task][0](tool, load(dataset, arguments.smoke), seed, arguments.epochs)
        of = version("scvi-tools" if tool == "MultiVI" else "scvae-ext")
        row = dict(zip(columns, (seed, dataset, task, tool), strict=True)) | figures
        row |= {"version": of, "torch": version("torch")}
        print(json.dumps(row), flush=True)
        arguments.results.parent.mkdir(exist_ok=True)
        with arguments.results.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    print(table(pd.read_json(arguments.results, lines=True)))


if __name__ == "__main__":
    main()
