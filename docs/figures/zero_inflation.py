"""Figure and numbers of docs/diagnostics/zero_inflation.md.

SCVAE_EXT_DATA=... python docs/figures/zero_inflation.py [simulation] [pbmc3k] [inflated] [plates] [planted]
    [constrained]
"""

import os
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc

import scvae_ext as sv

DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"
QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


def variable_genes(adata, n_genes):
    """Return raw counts of the most variable genes, in cells that have any of them."""
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=n_genes)
    chosen = adata[:, normalised.var["highly_variable"].to_numpy()].copy()
    sc.pp.filter_cells(chosen, min_counts=1)
    sc.pp.filter_genes(chosen, min_cells=1)
    return ad.AnnData(chosen.X, obs=chosen.obs, var=chosen.var)


def with_extra_zeros(adata, seed):
    """Give half of the genes a known pi, uniform between 0.1 and 0.5, and none to the others."""
    rng = np.random.default_rng(seed)
    pi = np.where(rng.random(adata.n_vars) < 0.5, 0.0, rng.uniform(0.1, 0.5, adata.n_vars))
    inflated = adata.copy()
    inflated.X = inflated.X.tocsr()
    inflated.X.data[rng.random(inflated.X.nnz) < pi[inflated.X.indices]] = 0
    inflated.X.eliminate_zeros()
    inflated.var["true_pi"] = pi
    sc.pp.filter_cells(inflated, min_counts=1)
    return ad.AnnData(inflated.X, obs=inflated.obs, var=inflated.var)


def trained(adata, batch_key=None, train_size=0.6, **options):
    """Train by the defaults, with enough cells held out to say something of each gene."""
    sv.SCVAE.setup_anndata(adata, batch_key=batch_key)
    model = sv.SCVAE(adata, **options)
    model.train(train_size=train_size, **QUIET)
    return model


def report(name, adata, result):
    print(f"\n{name}: {adata.n_obs} cells, {adata.n_vars} genes, {result.n_cells} cells held out\n{result}")
    frame = result.to_frame()
    if "true_pi" in adata.var:
        truth = adata.var["true_pi"].to_numpy()
        supported = (frame["verdict"] == "supported").to_numpy()
        held = ((frame["lower"] <= truth) & (frame["upper"] >= truth)).to_numpy()
        print(
            f"genes with pi > 0: {np.sum(truth > 0)}, supported {np.sum(supported & (truth > 0))}; genes without: "
            f"{np.sum(truth == 0)}, supported {np.sum(supported & (truth == 0))}, p < 0.05 in "
            f"{np.mean(frame['p_value'][truth == 0] < 0.05):.3f}; truth in the 95% interval: of supported "
            f"{held[supported].mean():.3f}, of all with pi > 0 {held[truth > 0].mean():.3f}"
        )
    else:
        shown = ["pi", "lower", "upper", "q_value", "evidence_gain", "detected"]
        print(frame.sort_values("p_value")[shown].head(8).round(3))
    sys.stdout.flush()


def simulation():
    for seed in range(3):
        adata = sv.datasets.synthetic_counts(2000, 200, n_latent=3, seed=seed)
        del adata.layers["mean"]
        adata = with_extra_zeros(adata, seed)
        report(f"simulation {seed}", adata, sv.diagnostics.zero_inflation(trained(adata)))


def pbmc3k():
    adata = variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000)
    result = sv.diagnostics.zero_inflation(trained(adata))
    report("pbmc3k", adata, result)
    sv.pl.zero_inflation(result)[0].figure.savefig(STATIC / "zero_inflation.png", dpi=110)


def inflated():
    adata = variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000)
    model = trained(adata, gene_likelihood="zinb")
    result = sv.diagnostics.zero_inflation(model, n_refits=2, train_options=QUIET)
    report("pbmc3k, zinb", adata, result)
    print(result.to_frame()[["pi", "pi_spread", "model_pi", "model_pi_spread"]].describe().round(3))


def lines_with_planted_zeros():
    adata = ad.read_h5ad(DATA / "mixology_cross_protocol.h5ad")
    return with_extra_zeros(variable_genes(adata[adata.obs["batch"] == "10x_5cl"].copy(), 500), 0)


def constrained():
    """Print the table of ways to constrain pi."""
    prior = {"zero_inflation_prior": (1.0, 9.0)}
    kinds = ({}, prior, {"zero_inflation": "gene"}, {"zero_inflation": "gene", **prior}, {"zero_inflation": "logistic"})
    data = {
        "pbmc3k": variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000),
        "cell lines with zeros planted": lines_with_planted_zeros(),
    }
    for name, adata in data.items():
        truth = adata.var["true_pi"].to_numpy() if "true_pi" in adata.var else np.zeros(adata.n_vars)
        print(f"{name}: nb, evidence {sv.diagnostics.evidence(trained(adata)).mean:.2f}", flush=True)
        for options in kinds:
            model = trained(adata, gene_likelihood="zinb", **options)
            pi = model.get_likelihood_parameters(indices=model.validation_indices)["dropout"].mean(0)
            of_genes = [f"{pi[chosen].mean():.2f}" for chosen in (truth == 0, truth > 0) if chosen.any()]
            evidence = sv.diagnostics.evidence(model).mean
            print(f"{name}: {options}, mean pi without and with {of_genes}, evidence {evidence:.2f}", flush=True)


def plates():
    adata = ad.read_h5ad(DATA / "mixology_cross_protocol.h5ad")
    adata = variable_genes(adata[adata.obs["batch"].astype(str).str.startswith("sc_celseq2")].copy(), 500)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    report("CEL-seq2 plates", adata, sv.diagnostics.zero_inflation(trained(adata, batch_key="batch")))


def planted():
    adata = lines_with_planted_zeros()
    report("10x cell lines with zeros planted", adata, sv.diagnostics.zero_inflation(trained(adata)))


if __name__ == "__main__":
    parts = {
        "simulation": simulation,
        "pbmc3k": pbmc3k,
        "inflated": inflated,
        "plates": plates,
        "planted": planted,
        "constrained": constrained,
    }
    for part in sys.argv[1:] or parts:
        parts[part]()
