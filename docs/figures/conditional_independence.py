"""Figures and numbers of docs/diagnostics/conditional_independence.md.

SCVAE_EXT_DATA=... python docs/figures/conditional_independence.py [rates simulated factors kept_in_vain pbmc3k]
"""

import itertools
import os
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
import torch

import scvae_ext as sv

DATA = Path(os.environ["SCVAE_EXT_DATA"])
STATIC = Path(__file__).resolve().parents[1] / "_static"
TRAINING = {"train_size": 0.7, "validation_size": 0.1, "accelerator": "cpu", "enable_progress_bar": False}


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


def simulate(n_modules, n_cells=1500, n_genes=150, size=12, seed=0):
    """Draw counts from three latent dimensions, and from modules of genes that vary independently of them."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (4, 3))[rng.integers(0, 4, n_cells)] + rng.normal(size=(n_cells, 3))
    logits = rng.normal(size=n_genes) + z @ rng.normal(0, 0.4, (3, n_genes))
    for module in range(n_modules):
        logits[:, module * size : (module + 1) * size] += 0.8 * rng.normal(size=(n_cells, 1))
    expression = np.exp(logits)
    mean = 1000 * np.exp(rng.normal(0, 0.3, (n_cells, 1))) * expression / expression.sum(1, keepdims=True)
    return ad.AnnData(sp.csr_matrix(rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape)), dtype=np.float32))


def compare(name, adata, n_latent, residual_rank):
    sv.SCVAE.setup_anndata(adata)
    result = sv.diagnostics.compare_latent_dimensions(
        adata, n_latent, residual_rank, n_optimisation_steps=100, **TRAINING
    )
    print(
        f"{name}: {adata.n_obs} cells, {adata.n_vars} genes\n{result}\n{result.to_frame().round(4).to_string()}\n",
        flush=True,
    )
    return result


def rates(n_sets=100, n_cells=200):
    """Draw data sets from a trained model, each cell's state from the prior, and judge them with that very model."""
    for likelihood in ("nb", "poisson"):
        adata = simulate(0, n_genes=60)
        adata.obs["size"] = adata.X.sum(1).A1 / np.median(adata.X.sum(1).A1)
        sv.SCVAE.setup_anndata(adata, size_factor_key="size")
        model = sv.SCVAE(adata, n_latent=3, gene_likelihood=likelihood)
        model.train(**TRAINING)
        found = []
        for seed in range(n_sets):
            chosen = np.random.default_rng(seed).choice(adata.n_obs, n_cells, replace=False)
            minibatch = model._own_source().minibatch(chosen)
            torch.manual_seed(seed)
            with torch.no_grad():
                counts = model.module.decode(model.module.sample_prior(n_cells), minibatch).sample()
            drawn = ad.AnnData(sp.csr_matrix(counts.numpy()), obs=adata.obs.iloc[chosen], var=adata.var)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The effective sample size")
                found.append(sv.diagnostics.conditional_independence(model, drawn, seed=seed))
        excess = np.array([each.excess / each.excess_error for each in found])
        pairs, modules = (
            np.mean([number > 0 for number in of_sets])
            for of_sets in ([len(each.pairs) for each in found], [each.n_modules for each in found])
        )
        smallest = np.median([each.effective_sample_size.min() for each in found])
        print(
            f"{likelihood}: {n_sets} sets of {n_cells} cells; excess {excess.mean():.2f}, {excess.std():.2f}, above "
            f"1.645 {np.mean(excess > 1.645):.2f}; pairs {pairs:.2f}, modules {modules:.2f}; smallest effective sample "
            f"size of a set, median {smallest:.0f}",
            flush=True,
        )


def simulated():
    for n_modules in (0, 2):
        compare(f"simulated, {n_modules} modules", simulate(n_modules), [3, 10], [0, 2])


def factors(seeds=(0, 1, 2), n_latent=(3, 10), n_modules=(2, 0)):
    """Compare training with residual factors, those that train() keeps and two from the beginning, with none."""
    for seed, of_modules, dimensions in itertools.product(seeds, n_modules, n_latent):
        adata = simulate(of_modules, seed=seed)
        sv.SCVAE.setup_anndata(adata)
        models = [sv.SCVAE(adata, n_latent=dimensions, residual_rank=rank) for rank in (0, 2, 2)]
        models[2].module = models[2]._with_factors(2)
        for model in models if of_modules and dimensions == 3 else models[:2]:
            model.train(**TRAINING)
        text = f"seed {seed}, {of_modules} modules, {dimensions} dimensions:"
        weights = [model.module.state_dict() for model in models[:2]]
        if models[1].module.residual_rank == 0:
            assert all(torch.equal(*pair) for pair in zip(*(each.values() for each in weights), strict=True))
            text += " the very weights of the model without;"
        scores = [
            sv.diagnostics.evidence(model, indices=model.test_indices, n_samples=100, n_optimisation_steps=60)
            for model in models
            if model.is_trained and (model.module.residual_rank or models[1].module.residual_rank)
        ]
        for name, score in zip(("kept", "from the beginning"), scores[1:], strict=False):
            gain = score.log_evidence - scores[0].log_evidence
            text += f" {name} {gain.mean():.2f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.2f};"
        print(f"{text}\n{models[1].residual_factor_test.round(3).to_string()}", flush=True)


def kept_in_vain(n_sets=40, n_latent=3):
    """Count how often factors stay where the data have no modules, and what they cost held-out cells then."""
    n_kept, costs = 0, []
    for seed in range(n_sets):
        adata = simulate(0, seed=100 + seed)
        sv.SCVAE.setup_anndata(adata)
        models = [sv.SCVAE(adata, n_latent=n_latent, residual_rank=rank) for rank in (2, 0)]
        models[0].train(**TRAINING)
        n_active = int(models[0].residual_factor_test["active"].drop("together").sum())
        n_kept += n_active
        if n_active:
            models[1].train(**TRAINING)
            scores = [
                sv.diagnostics.evidence(model, indices=model.test_indices, n_samples=100, n_optimisation_steps=60)
                for model in models
            ]
            gain = scores[0].log_evidence - scores[1].log_evidence
            costs.append(gain.mean())
            print(
                f"set {seed}: {n_active} kept; held-out evidence {gain.mean():.3f} ± "
                f"{gain.std(ddof=1) / np.sqrt(len(gain)):.3f}\n{models[0].residual_factor_test.round(3).to_string()}",
                flush=True,
            )
    print(
        f"{n_sets} sets without modules, two factors offered: {n_kept} of {2 * n_sets} kept, in {len(costs)} sets; "
        f"mean of held-out evidence over all sets {sum(costs) / n_sets:.4f}",
        flush=True,
    )


def pbmc3k():
    pbmc = variable_genes(ad.read_h5ad(DATA / "pbmc3k.h5ad"), 1000)
    result = compare("pbmc3k", pbmc, [2, 10], [0, 5])
    found = result.dependence[10, 0]
    print(found, found.to_frame("pairs").head(12), found.modules, sep="\n")
    sv.pl.conditional_independence(found)[0].figure.savefig(STATIC / "conditional_independence.png", dpi=110)
    sv.pl.compare_latent_dimensions(result)[0].figure.savefig(STATIC / "compare_latent_dimensions.png", dpi=110)
    loadings = result.models[10, 5].get_residual_loadings()
    print(loadings.abs().apply(lambda factor: ", ".join(factor.nlargest(8).index)).to_string(), flush=True)
    # Counts drawn from the model itself show what estimation and library size alone do.
    drawn = ad.AnnData(result.models[10, 0].posterior_predictive_sample(), obs=pbmc.obs, var=pbmc.var)
    sc.pp.filter_cells(drawn, min_counts=1)
    sc.pp.filter_genes(drawn, min_cells=1)
    compare("drawn from the model of pbmc3k", drawn, [10], [0])


PARTS = {"rates": rates, "simulated": simulated, "factors": factors, "kept_in_vain": kept_in_vain, "pbmc3k": pbmc3k}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
