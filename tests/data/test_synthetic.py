import numpy as np
import pytest
from anndata import read_h5ad

from scvae_ext.data import setup_anndata, synthetic_counts


def pooled(adata):
    """Standardised residuals of all entries against the known truth: mean 0 and variance 1."""
    mean = adata.layers["mean"].astype(np.float64)
    theta = adata.var["inverse_dispersion"].to_numpy()
    pi = adata.var["zero_inflation"].to_numpy()
    expected = (1 - pi) * mean
    variance = (1 - pi) * (mean + mean**2 / theta + pi * mean**2)
    residual = (adata.X.toarray() - expected) / np.sqrt(variance)
    return residual[mean > 0.05]


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_moments_follow_the_truth(likelihood):
    residual = pooled(synthetic_counts(2000, 200, likelihood=likelihood, seed=3))
    assert abs(residual.mean()) < 5 / np.sqrt(residual.size)
    standard_error = np.sqrt((np.mean(residual**4) - 1) / residual.size)
    assert abs(residual.var() - 1) < 5 * standard_error


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_share_of_zeros_follows_the_truth(likelihood):
    adata = synthetic_counts(2000, 200, likelihood=likelihood, seed=4)
    mean = adata.layers["mean"].astype(np.float64)
    theta = adata.var["inverse_dispersion"].to_numpy()
    zero = np.exp(-mean) if likelihood == "poisson" else (1 + mean / theta) ** -theta
    zero = adata.var["zero_inflation"].to_numpy() * (1 - zero) + zero
    observed = (adata.X.toarray() == 0).mean()
    assert abs(observed - zero.mean()) < 5 * np.sqrt((zero * (1 - zero)).mean() / zero.size)


def test_the_parts_of_the_truth_agree():
    adata = synthetic_counts(300, 50, n_types=3, n_batches=4, n_latent=2, likelihood="zinb", seed=1)
    codes = adata.obs["batch"].cat.codes.to_numpy()
    log_expression = (
        adata.var["log_baseline"].to_numpy()
        + adata.obsm["latent"].astype(np.float64) @ adata.varm["loadings"].T
        + adata.varm["batch_effect"].T[codes]
    )
    expression = np.exp(log_expression)
    expression /= expression.sum(1, keepdims=True)
    np.testing.assert_allclose(adata.layers["expression"], expression, rtol=1e-5)
    mean = expression * adata.obs["library_size"].to_numpy()[:, None]
    np.testing.assert_allclose(adata.layers["mean"], mean, rtol=1e-5)
    assert adata.obs["cell_type"].value_counts().tolist() == [100] * 3
    assert adata.obs["batch"].value_counts().tolist() == [75] * 4
    assert adata.uns["truth"]["likelihood"] == "zinb"


def test_parameters_have_the_size_asked_for():
    adata = synthetic_counts(
        2000, 2000, likelihood="zinb", library_size=500.0, inverse_dispersion=5.0, zero_inflation=0.3
    )
    assert adata.var["inverse_dispersion"].median() == pytest.approx(5, rel=0.1)
    assert adata.var["zero_inflation"].mean() == pytest.approx(0.3, abs=0.02)
    assert adata.obs["library_size"].median() == pytest.approx(500, rel=0.1)


def test_truth_that_does_not_apply():
    adata = synthetic_counts(20, 30, likelihood="poisson")
    assert np.isinf(adata.var["inverse_dispersion"]).all()
    assert (adata.var["zero_inflation"] == 0).all()
    assert (adata.varm["batch_effect"] == 0).all()
    assert (synthetic_counts(20, 30, likelihood="zinb", zero_inflation=0.0).var["zero_inflation"] == 0).all()


def test_types_differ_in_latent_space():
    adata = synthetic_counts(600, 50, n_types=4)
    latent, codes = adata.obsm["latent"], adata.obs["cell_type"].cat.codes.to_numpy()
    within = np.mean([latent[codes == k].var(0).sum() for k in range(4)])
    assert within == pytest.approx(5, rel=0.15)
    assert latent.var(0).sum() > 2 * within


def test_every_cell_has_counts_and_the_seed_decides():
    adata = synthetic_counts(500, 20, library_size=2.0)
    assert adata.X.dtype == np.float32
    assert adata.X.format == "csr"
    assert (adata.X.sum(1) > 0).all()
    assert (adata.X != synthetic_counts(500, 20, library_size=2.0).X).nnz == 0
    assert (adata.X != synthetic_counts(500, 20, library_size=2.0, seed=1).X).nnz > 0


def test_round_trip_and_set_up(tmp_path):
    adata = synthetic_counts(100, 20, n_batches=2, likelihood="poisson")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = read_h5ad(tmp_path / "a.h5ad")
    assert (again.X != adata.X).nnz == 0
    assert dict(again.uns["truth"]) == adata.uns["truth"]
    setup_anndata(again, batch_key="batch", labels_key="cell_type")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells must be at least 1, but is 0"),
        ({"n_types": 0}, "n_types must be at least 1, but is 0"),
        ({"library_size": 0.0}, "library_size must be finite and greater than 0, but is 0.0"),
        ({"inverse_dispersion": float("inf")}, "inverse_dispersion must be finite and greater than 0, but is inf"),
        ({"zero_inflation": 1.0}, "zero_inflation must be at least 0 and below 1, but is 1.0"),
        ({"library_size": 1e-9}, "cells got no counts in 100 attempts. Raise library_size or n_genes"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_counts(**({"n_cells": 10, "n_genes": 10} | arguments))


def test_unknown_likelihood():
    # The type checker of the tests would refuse it before the check that users meet.
    with pytest.raises(ValueError, match=r"must be one of \('nb', 'zinb', 'poisson'\), but is 'negbin'"):
        synthetic_counts.__wrapped__(likelihood="negbin")
