"""RNA and surface proteins: CiteVAE beside totalVI, and proteins that were hidden against what was measured.

Two questions, on the cord blood cells of CITE-seq (8,617 cells, 2,000 genes, 10 proteins), both tools by their own
defaults with 20 latent dimensions:

``joint``
    One tenth of the cells is seen by neither. Evidence log p(genes, proteins) of those, in nats per cell, and agreement
    of the latent space with the known types, beside that of genes alone (``SCVAE``).
``imputation``
    Cells are dealt into two batches, and in the second every other protein is hidden. Each tool predicts it from the
    genes and the other proteins; Spearman correlation over the cells of that batch with the counts that were measured,
    a protein at a time. The baseline averages the 30 nearest cells of the first batch by 20 principal components of
    the genes and the proteins that both have.

    pip install -c constraints.txt . && pip install -r benchmarks/requirements-peers.txt
    SCVAE_EXT_DATA=/path/to/data python benchmarks/proteins.py
    python benchmarks/proteins.py --smoke    # ours alone, on a few simulated cells
    python benchmarks/proteins.py --table    # what is there
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
from labelled_datasets import DATA
from quality import agreement

RESULTS = Path(__file__).parent / "results" / "proteins.jsonl"
KEY = "protein"
N_LATENT = 20
N_EVIDENCE_SAMPLES = 200
N_NEIGHBORS = 30


def load(smoke: bool) -> ad.AnnData:
    """Read the cord blood cells, or simulate a few."""
    if smoke:
        import scvae_ext as sv

        return sv.datasets.synthetic_counts(300, 50, n_proteins=4)
    path = DATA / "citeseq_cbmc_2000genes.h5ad"
    if not path.exists():
        raise SystemExit(f"{path} is missing: set SCVAE_EXT_DATA to the folder that holds it")
    adata = ad.read_h5ad(path)
    return adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()


def hide(adata: ad.AnnData, seed: int) -> tuple[ad.AnnData, list[str]]:
    """Deal cells into two batches, and hide every other protein in the second."""
    hidden = list(adata.obsm[KEY].columns[seed % 2 :: 2])
    partial = adata.copy()
    in_second = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    partial.obs["panel"] = np.where(in_second, "second", "first")
    proteins = partial.obsm[KEY].copy()
    proteins.loc[in_second, hidden] = 0
    partial.obsm[KEY] = proteins
    return partial, hidden


def fit_ours(adata, batch_key, seed, epochs):
    """Train CiteVAE by its defaults."""
    import scvae_ext as sv

    sv.CiteVAE.setup_anndata(adata, protein_expression_obsm_key=KEY, batch_key=batch_key)
    model = sv.CiteVAE(adata, n_latent=N_LATENT, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def fit_genes_alone(adata, batch_key, seed, epochs):
    """Train SCVAE by its defaults."""
    import scvae_ext as sv

    sv.SCVAE.setup_anndata(adata, batch_key=batch_key)
    model = sv.SCVAE(adata, n_latent=N_LATENT, seed=seed)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model


def fit_totalvi(adata, batch_key, seed, epochs):
    """Train totalVI by its defaults."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.TOTALVI.setup_anndata(adata, protein_expression_obsm_key=KEY, batch_key=batch_key)
    model = scvi.model.TOTALVI(adata, n_latent=N_LATENT)
    model.train(epochs, accelerator="cpu", enable_progress_bar=False)
    return model


FITS = {"scvae-ext": fit_ours, "genes alone": fit_genes_alone, "totalVI": fit_totalvi}


def joint(tool: str, adata: ad.AnnData, seed: int, epochs: int | None) -> dict[str, float]:
    """Evidence of held-out cells, and the latent space against known types."""
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    held_out, train = (
        adata[np.sort(order[: adata.n_obs // 10])].copy(),
        adata[np.sort(order[adata.n_obs // 10 :])].copy(),
    )
    start = time.perf_counter()
    model = FITS[tool](train, None, seed, epochs)
    row = {"seconds": time.perf_counter() - start}
    if tool == "totalVI":
        # Its importance weights sum in single precision, minibatch by minibatch, of which each counts by its cells.
        parts = [held_out[start : start + 128].copy() for start in range(0, held_out.n_obs, 128)]
        of_parts = [float(model.get_marginal_ll(part, n_mc_samples=N_EVIDENCE_SAMPLES)) for part in parts]
        row["evidence"] = float(np.average(of_parts, weights=[part.n_obs for part in parts]))
        latent = model.get_latent_representation(adata)
    else:
        row["evidence"] = float(model.get_marginal_ll(held_out, n_mc_samples=N_EVIDENCE_SAMPLES))
        latent = model.get_latent_representation(adata, key_added=None)
    return row | agreement(latent, adata.obs["cell_type"])


def imputation(tool: str, adata: ad.AnnData, seed: int, epochs: int | None) -> dict[str, float]:
    """Correlation of predicted with measured counts of proteins that were hidden in one batch."""
    partial, hidden = hide(adata, seed)
    second = (partial.obs["panel"] == "second").to_numpy()
    start = time.perf_counter()
    if tool == "neighbours":
        predicted = by_neighbours(partial, hidden, second)
    elif tool == "totalVI":
        model = fit_totalvi(partial, "panel", seed, epochs)
        _, proteins = model.get_normalized_expression(
            indices=np.flatnonzero(second),
            transform_batch="first",
            n_samples=10,
            return_mean=True,
            include_protein_background=True,
        )
        predicted = proteins[hidden]
    else:
        model = fit_ours(partial, "panel", seed, epochs)
        predicted = model.get_protein_expression(
            indices=np.flatnonzero(second), transform_batch="first", include_background=True, key_added=None
        )[hidden]
    seconds = time.perf_counter() - start
    measured = adata.obsm[KEY].loc[second, hidden]
    correlations = [
        pd.Series(predicted[name].to_numpy()).corr(pd.Series(measured[name].to_numpy()), "spearman") for name in hidden
    ]
    return {
        "seconds": seconds,
        "spearman": float(np.mean(correlations)),
        **dict(zip(hidden, map(float, correlations), strict=True)),
    }


def by_neighbours(partial: ad.AnnData, hidden: list[str], second: np.ndarray) -> pd.DataFrame:
    """Mean log counts of the nearest cells of the first batch."""
    import scanpy as sc
    from sklearn.neighbors import NearestNeighbors

    genes = ad.AnnData(partial.X.copy())
    sc.pp.normalize_total(genes, target_sum=1e4)
    sc.pp.log1p(genes)
    sc.pp.pca(genes, n_comps=N_LATENT)
    logs = np.log1p(partial.obsm[KEY])
    shared = logs.drop(columns=hidden)
    space = np.hstack([genes.obsm["X_pca"], (shared - shared.mean()) / shared.std()])
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(space[~second]).kneighbors(space[second])[1]
    return pd.DataFrame({name: logs.loc[~second, name].to_numpy()[nearest].mean(1) for name in hidden})


TASKS = {"joint": (joint, list(FITS)), "imputation": (imputation, ["scvae-ext", "totalVI", "neighbours"])}


def table(rows: pd.DataFrame) -> str:
    """Means over the seeds that all tools have finished, as Markdown."""
    n_tools = rows.groupby("task")["tool"].transform("nunique")
    rows = rows[rows.groupby(["task", "seed"])["tool"].transform("nunique") == n_tools]
    lines = ["| tool | seeds | evidence | ARI | NMI | ASW | s |", "|---|---:|---:|---:|---:|---:|---:|"]
    for tool, of_tool in rows[rows["task"] == "joint"].groupby("tool", sort=False):
        means = of_tool.mean(numeric_only=True)
        cells = [
            "-" if tool == "genes alone" else f"{means.evidence:.1f}",  # of genes it is another quantity
            *(f"{means[name]:.3f}" for name in ("ari", "nmi", "asw")),
            f"{means.seconds:.0f}",
        ]
        lines.append(f"| {tool} | {len(of_tool)} | {' | '.join(cells)} |")
    lines += ["", "| tool | seeds | Spearman correlation of hidden proteins | s |", "|---|---:|---:|---:|"]
    for tool, of_tool in rows[rows["task"] == "imputation"].groupby("tool", sort=False):
        lines.append(
            f"| {tool} | {len(of_tool)} | {of_tool['spearman'].mean():.3f} | {of_tool['seconds'].mean():.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--tools", nargs="+", default=[*FITS, "neighbours"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="run ours on a few simulated cells, and keep nothing")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the tables of the finished runs and stop")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.tools, arguments.seeds, arguments.epochs = ["scvae-ext", "genes alone", "neighbours"], [0], 2
        arguments.results = Path(tempfile.mkdtemp()) / "proteins.jsonl"
    done = pd.read_json(arguments.results, lines=True) if arguments.results.exists() else pd.DataFrame()
    for seed in [] if arguments.table else arguments.seeds:
        for task in arguments.tasks:
            run, tools = TASKS[task]
            for tool in [tool for tool in tools if tool in arguments.tools]:
                if len(done) and (done[["task", "tool", "seed"]] == (task, tool, seed)).all(axis=1).any():
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    figures = run(tool, load(arguments.smoke), seed, arguments.epochs)
                of = version("scvi-tools" if tool == "totalVI" else "scvae-ext")
                row = {"task": task, "tool": tool, "seed": seed, **figures, "version": of, "torch": version("torch")}
                print(json.dumps(row), flush=True)
                arguments.results.parent.mkdir(exist_ok=True)
                with arguments.results.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    print(table(pd.read_json(arguments.results, lines=True)))


if __name__ == "__main__":
    main()
