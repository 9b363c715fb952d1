import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scvae_ext import SCVAE
from scvae_ext.models.cells import evaluating
from scvae_ext.models.other_genes import fit_other_genes
from scvae_ext.models.posterior_draws import posterior_draws

N_OWN = 30


@pytest.fixture(scope="module")
def everything():
    """Two kinds of cells; the model gets to see 30 of 40 genes. Of the others, five follow the kind and five do not."""
    rng = np.random.default_rng(0)
    kind = np.arange(240) % 2
    rate = np.full((240, 40), 5.0)
    rate[kind == 1, :10] *= 4.0
    rate[kind == 1, N_OWN : N_OWN + 5] *= 4.0
    adata = AnnData(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(40)]
    adata.layers["counts"] = adata.X.copy()
    adata.obs["kind"] = np.array(["a", "b"])[kind]
    return adata


@pytest.fixture(scope="module")
def model(everything):
    own = everything[:, :N_OWN].copy()
    SCVAE.setup_anndata(own, layer="counts")
    model = SCVAE(own, n_hidden=8, n_latent=2)
    model.train(max_steps=50, learning_rate=1e-2, kl_warmup=0.8, weight_decay=0.0, enable_progress_bar=False)
    return model


def _fit(model, adata, layer="counts"):
    _, cells = model._cells(adata, None, 64, False)
    with evaluating(model.module):
        return cells, fit_other_genes(model.module, cells, adata, layer, model.registry.var_names)


def test_head_is_the_solution_of_weighted_ridge_regression(model, everything):
    cells, others = _fit(model, everything)
    with evaluating(model.module):
        hidden = torch.cat(
            [model.module.decode_hidden(model.module.encode(batch).qz.loc, batch) for _, batch in cells]
        ).numpy()
    depth = everything.layers["counts"][:, :N_OWN].toarray().sum(1).astype(float)
    centre = np.average(hidden, axis=0, weights=depth)
    variance, directions = np.linalg.eigh(np.cov(hidden.T, aweights=depth, ddof=0))
    kept = variance > 1e-6 * variance[-1]
    features = (hidden - centre) @ directions[:, kept] / np.sqrt(variance[kept])
    for place, counts in enumerate(everything.layers["counts"][:, N_OWN:].toarray().T):
        mean = counts.sum() / depth.sum()
        root = np.sqrt(1.0 / (depth * mean))[:, None]
        design = np.vstack([root * depth[:, None] * features, np.sqrt(kept.sum()) / mean * np.eye(kept.sum())])
        target = np.concatenate([root[:, 0] * (counts - depth * mean), np.zeros(kept.sum())])
        slope = np.linalg.lstsq(design, target)[0]
        expected = np.maximum(mean + features @ slope, 0.1 * mean)
        fitted = others.head(torch.from_numpy(hidden))[:, place].numpy()
        np.testing.assert_allclose(fitted, expected, rtol=2e-3)


def test_draws_hold_the_models_genes_and_then_the_others(model, everything):
    cells, others = _fit(model, everything)
    with evaluating(model.module):
        chunks = list(posterior_draws(model.module, cells, [], 1, 0, others=others))
    assert others.names == tuple(everything.var_names[N_OWN:])
    counts = torch.cat([chunk.counts.dense() for chunk in chunks]).numpy()
    np.testing.assert_array_equal(counts, everything.X.toarray())
    for chunk in chunks:
        assert (chunk.counts.cell_index.diff() >= 0).all()
        assert chunk.expression.shape[-1] == chunk.inverse_dispersion.shape[-1] == 40
        torch.testing.assert_close(chunk.expression[..., :N_OWN].sum(-1), torch.ones(1, len(chunk.depth)))


def test_genes_outside_the_training_set_are_compared(model, everything):
    table = model.differential_expression(everything, groupby="kind", group1="b", layer="counts")
    assert len(table) == 40
    flagged = table["is_de_fdr_0.05"]
    outside = [f"gene{i}" for i in range(N_OWN, 40)]
    assert flagged[outside[:5]].all()
    # Depth is that of the model's genes, of which a third has four times the counts in this kind.
    dense, of_b = everything.X.toarray(), (everything.obs["kind"] == "b").to_numpy()
    depth = dense[:, :N_OWN].sum(1)
    expected = np.log2(dense[of_b].sum(0) / depth[of_b].sum()) - np.log2(dense[~of_b].sum(0) / depth[~of_b].sum())
    np.testing.assert_allclose(table.loc[outside, "lfc_mean"], expected[N_OWN:], atol=0.15)
    assert set(everything.uns["rank_genes_groups"]["names"]["b"]) == set(everything.var_names)


def test_the_models_genes_give_the_same_as_without_others(model, everything):
    options = {"groupby": "kind", "group1": "b", "key_added": None}
    alone = model.differential_expression(everything, **options)
    together = model.differential_expression(everything, layer="X", **options)
    np.testing.assert_allclose(together.loc[alone.index, "scale1"], alone["scale1"], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "missing"}, "missing"),
        ({"adata": None, "layer": "counts"}, "all 30 genes of adata are the model's own"),
    ],
)
def test_errors_name_what_is_wrong(model, everything, change, message):
    with pytest.raises((ValueError, KeyError), match=message):
        model.differential_expression(**({"adata": everything, "groupby": "kind"} | change))


def test_values_that_are_no_counts_are_refused(model, everything):
    changed = everything.copy()
    changed.layers["logged"] = changed.X.log1p()
    with pytest.raises(ValueError, match="not a whole number"):
        model.differential_expression(changed, groupby="kind", layer="logged")


def test_dispersion_is_that_of_the_moments(model, everything):
    rng = np.random.default_rng(1)
    changed = everything.copy()
    counts = everything.layers["counts"].toarray()
    counts[:, N_OWN:] = rng.poisson(5 * rng.gamma(2.0, 0.5, (240, 10)))
    changed.layers["counts"] = sp.csr_matrix(counts)
    _, others = _fit(model, changed)
    depth = counts[:, :N_OWN].sum(1).astype(float)
    for place, observed in enumerate(counts[:, N_OWN:].T.astype(float)):
        mean = observed.sum() / depth.sum() * depth
        # The mean of the squares of residuals is mean + mean^2 / theta.
        excess = (np.square(observed - mean) - mean).sum()
        np.testing.assert_allclose(others.inverse_dispersion[place], np.square(mean).sum() / excess, rtol=1e-4)
