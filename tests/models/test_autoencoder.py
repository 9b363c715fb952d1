import json

import numpy as np
import pandas as pd
import pytest

from scvae_ext import Autoencoder


@pytest.fixture
def autoencoder(load):
    return load("autoencoder")


def test_latent_points_are_returned_and_written(autoencoder, adata):
    latent = autoencoder.get_latent_representation()
    assert latent.shape == (120, 3)
    assert latent.dtype == np.float32
    np.testing.assert_array_equal(adata.obsm["X_autoencoder"], latent)


def test_expression_sums_to_the_library_size_and_is_written(autoencoder, adata):
    expression = autoencoder.get_normalized_expression(library_size=500)
    assert isinstance(expression, pd.DataFrame)
    np.testing.assert_allclose(expression.sum(1), 500, rtol=1e-4)
    np.testing.assert_array_equal(adata.layers["autoencoder_normalized"], expression)
    assert (expression.to_numpy() >= 0).all()


def test_genes_come_in_the_order_asked_for_with_the_values_among_all(autoencoder):
    everything = autoencoder.get_normalized_expression(key_added=None)
    some = autoencoder.get_normalized_expression(gene_list=["gene_7", "gene_2"], key_added=None)
    pd.testing.assert_frame_equal(some, everything[["gene_7", "gene_2"]])


def test_several_batches_are_averaged(autoencoder):
    one, two, both = (
        autoencoder.get_normalized_expression(transform_batch=batch, return_numpy=True, key_added=None)
        for batch in ("batch_0", "batch_1", ["batch_0", "batch_1"])
    )
    assert not np.allclose(one, two)
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-4, atol=1e-7)


def test_error_is_below_the_variance_of_the_log_normalised_values(autoencoder, adata):
    counts = adata.X.toarray()
    with_mean = autoencoder.get_reconstruction_error()
    each = autoencoder.get_reconstruction_error(return_mean=False)
    assert with_mean == pytest.approx(each.mean())
    variance = np.log1p(1e4 * counts / counts.sum(1, keepdims=True)).var(0).mean()
    assert 0.05 * variance < with_mean < variance
    np.testing.assert_allclose(autoencoder.get_reconstruction_error(indices=[3, 1], return_mean=False), each[[3, 1]])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_results_do_not_depend_on_the_minibatch_or_the_selection(autoencoder, batch_size):
    everything = autoencoder.get_latent_representation(key_added=None)
    order = np.random.default_rng(0).permutation(120)[:40]
    some = autoencoder.get_latent_representation(indices=order, batch_size=batch_size)
    np.testing.assert_allclose(some, everything[order], rtol=1e-4, atol=1e-5)


def test_history_has_the_error(autoencoder):
    assert {"mse_train", "mse_validation"} <= set(autoencoder.history.columns)


def test_where_results_came_from_is_recorded(autoencoder, adata):
    autoencoder.get_latent_representation()
    record = json.loads(adata.uns["scvae_ext"])["results"]['obsm["X_autoencoder"]']
    assert record["model"] == "Autoencoder"


def test_training_reduces_the_error(adata):
    model = Autoencoder(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=300, enable_progress_bar=False)
    errors = model.history["mse_validation"]
    assert errors.min() < 0.95 * errors.iloc[0]


@pytest.mark.usefixtures("unchecked")
def test_unknown_options_are_refused(adata):
    with pytest.raises(TypeError, match=r"Autoencoder got an unknown option 'gene_likelihood'.*n_hidden"):
        Autoencoder(adata, gene_likelihood="nb")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("library_size", [0, -1, float("nan"), float("inf"), True, "latent"])
def test_impossible_library_sizes_are_refused(autoencoder, library_size):
    with pytest.raises(ValueError, match="library_size="):
        autoencoder.get_normalized_expression(library_size=library_size)
