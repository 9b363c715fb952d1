import json

import numpy as np
import pytest
import scipy.sparse as sp

from scvae_ext import SCVAE
from scvae_ext.datasets import synthetic_counts

ALONE = {"key_added": None, "return_numpy": True}


@pytest.mark.parametrize("library_size", [1.0, 10_000])
@pytest.mark.parametrize("kind", ["nb", "zinb", "simplex"])
def test_it_sums_to_the_library_size_and_keeps_the_order_of_the_genes(load, kind, library_size):
    model = load(kind)
    options = {"given": "counts", "library_size": library_size, **ALONE}
    everything = model.get_normalized_expression(**options)
    np.testing.assert_allclose(everything.sum(1), library_size, rtol=1e-5)
    some = model.get_normalized_expression(gene_list=["gene_7", "gene_2"], indices=[5, 1], **options)
    np.testing.assert_allclose(some, everything[[5, 1]][:, [7, 2]], rtol=1e-5)


def test_at_the_mean_of_the_posterior_it_is_the_formula(model):
    parameters = model.get_likelihood_parameters()
    state = model.get_normalized_expression(n_samples=1, **ALONE)
    theta, mean = parameters["dispersions"], parameters["mean"]
    expected = state * (theta + model.adata.X.toarray()) / (theta + mean)
    found = model.get_normalized_expression(n_samples=1, given="counts", **ALONE)
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-4)


def test_poisson_counts_say_nothing_that_the_state_does_not(load):
    model = load("poisson")
    of_state = model.get_normalized_expression(**ALONE)
    np.testing.assert_allclose(model.get_normalized_expression(given="counts", **ALONE), of_state, rtol=1e-4)


def test_what_belongs_to_the_cell_is_carried_over_to_another_batch(model):
    """Ratios between given counts and state, up to what normalises a cell, are the same in both batches."""
    ratios = [
        np.log(
            model.get_normalized_expression(transform_batch=batch, given="counts", n_samples=1, **ALONE)
            / model.get_normalized_expression(transform_batch=batch, n_samples=1, **ALONE)
        )
        for batch in model.registry.batch_categories
    ]
    assert ratios[0].std(axis=1).min() > 0.1
    centred = [ratio - ratio.mean(axis=1, keepdims=True) for ratio in ratios]
    np.testing.assert_allclose(*centred, atol=1e-4)


def test_in_several_batches_it_is_the_mean_of_those_in_each(model):
    each = [
        model.get_normalized_expression(transform_batch=batch, given="counts", n_samples=3, **ALONE)
        for batch in model.registry.batch_categories
    ]
    both = list(model.registry.batch_categories)
    found = model.get_normalized_expression(transform_batch=both, given="counts", n_samples=3, **ALONE)
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5)


def test_size_factors_and_latent_library_sizes(load):
    for kind in ("size factor", "latent library"):
        model = load(kind)
        values = model.get_normalized_expression(given="counts", library_size="latent", **ALONE)
        assert np.isfinite(values).all()
    np.testing.assert_allclose(values.sum(1), model.get_latent_library_size(), rtol=1e-4)


def test_it_is_written_with_its_provenance(model):
    expression = model.get_normalized_expression(given="counts", key_added="own")
    np.testing.assert_array_equal(model.adata.layers["own"], expression)
    record = json.loads(model.adata.uns["scvae_ext"])["results"]['layers["own"]']
    assert record["arguments"]["given"] == "counts"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": "count"}, 'given=\'count\' is not known: use "state" or "counts"'),
        ({"given": "counts", "interval": 0.9}, "leave out interval"),
        ({"given": "counts", "return_mean": False}, "leave out interval"),
    ],
)
def test_what_cannot_be_had_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.get_normalized_expression(**options)


def test_normalised_values_have_no_rate_behind_them(load):
    with pytest.raises(ValueError, match='gene_likelihood="normal" is none'):
        load("normal").get_normalized_expression(given="counts")


def test_it_predicts_the_other_half_of_the_molecules_better_than_the_state():
    """Halves of a cell's molecules share its rates, which vary about those of its state."""
    adata = synthetic_counts(400, 60, n_types=3, library_size=600, seed=1)
    counts = adata.X.toarray().astype(int)
    first = np.random.default_rng(0).binomial(counts, 0.5)
    second = counts - first
    adata.X = sp.csr_matrix(first.astype(np.float32))
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=32, n_latent=5)
    model.train(max_steps=400, enable_progress_bar=False)

    def deviance(given):
        mean = model.get_normalized_expression(given=given, **ALONE) * second.sum(1, keepdims=True)
        ratio = np.log(np.maximum(second, 1e-12) / mean, where=second > 0, out=np.zeros_like(mean))
        return 2 * (second * ratio - second + mean).mean()

    assert deviance("counts") < 0.9 * deviance("state")
