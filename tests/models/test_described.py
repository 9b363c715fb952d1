"""Which cells a model describes, and groups of cells by their states."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from scvae_ext import SCVAE, SemiSupervisedVAE
from scvae_ext.datasets import synthetic_counts
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.described import are_described, groups_of_states, standardised_elbo


def test_cells_far_below_the_others_of_their_batch_are_not_described():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(-1, 1, 1000), rng.normal(5, 2, 1000)])
    batch = np.repeat([3, 7], 1000)
    z[:100], z[1000:1200] = -9, -9
    described = are_described(z, batch)
    assert not described[:100].any()
    assert not described[1000:1200].any()
    # Of Gaussian cells as many as their tail holds.
    others = np.concatenate([described[100:1000], described[1200:]])
    assert (~others).mean() < 3 * norm.cdf(-3)


def test_cells_above_the_others_and_cells_of_tiny_batches_are_described():
    z = np.r_[np.zeros(50), 20.0, -20.0]
    assert are_described(z, np.zeros(52, dtype=np.int64)).tolist() == [True] * 51 + [False]
    assert are_described(z[-19:], np.zeros(19, dtype=np.int64)).all()


def test_a_batch_that_varies_less_than_its_replicates_loses_no_cell_within_three_of_them():
    z = np.r_[0.01 * np.arange(100), -2.0, -4.0]
    assert are_described(z, np.zeros(102, dtype=np.int64))[-2:].tolist() == [True, False]


def test_the_limit_is_three_standard_deviations_by_the_median_absolute_deviation():
    z = np.arange(-100.0, 101.0)
    spread = 50 / norm.ppf(0.75)
    limit = -3 * spread
    z[:2] = limit - 1, limit + 1
    assert are_described(z, np.zeros(201, dtype=np.int64)).tolist() == [False] + [True] * 200


@pytest.fixture(scope="module")
def fitted():
    adata = synthetic_counts(600, 60, n_types=3, seed=1)
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_latent=4)
    model.train(max_steps=500, enable_progress_bar=False, accelerator="cpu")
    return model, adata


def all_cells(model):
    return Cells(model._own_source(), np.arange(model.adata.n_obs), model.device)


def test_cells_of_the_model_have_an_elbo_like_those_that_it_draws(fitted):
    model, _ = fitted
    like = model.generate(600, like="cells", library_size="observed", seed=3)
    scores = {}
    for name, adata in (("own", model.adata), ("drawn", like)):
        cells = Cells(model._align(adata), np.arange(600), model.device)
        with evaluating(model.module):
            scores[name] = standardised_elbo(model.module, cells, 0)
    assert abs(np.median(scores["drawn"])) < 0.3
    assert abs(np.median(scores["own"])) < 0.5
    # With ten replicates the standard deviation of each cell is itself a guess.
    assert 0.7 < np.std(np.clip(scores["drawn"], -4, 4)) < 1.6


def test_shuffled_genes_are_not_described(fitted):
    model, adata = fitted
    wrong = adata[:50].copy()
    wrong.X = wrong.X[:, np.random.default_rng(0).permutation(60)]
    with evaluating(model.module):
        z = standardised_elbo(model.module, Cells(model._align(wrong), np.arange(50), model.device), 0)
    assert (z < -3).mean() > 0.95


def test_groups_are_of_like_states_and_the_same_each_time(fitted):
    model, adata = fitted
    with evaluating(model.module):
        group, n_groups = groups_of_states(model.module, all_cells(model), 0)
        again = groups_of_states(model.module, all_cells(model), 0)[0]
    assert n_groups == 16
    np.testing.assert_array_equal(again, group)
    types = adata.obs["cell_type"].cat.codes.to_numpy()
    most = sum(np.bincount(types[group == code]).max() for code in np.unique(group))
    assert most / len(types) > 0.9


def test_few_cells_make_few_groups(fitted):
    model, _ = fitted
    cells = Cells(model._own_source(), np.arange(35), model.device)
    with evaluating(model.module):
        assert groups_of_states(model.module, cells, 0)[1] == 3
        one = Cells(model._own_source(), np.arange(9), model.device)
        assert groups_of_states(model.module, one, 0)[1] == 1


def test_the_difference_is_from_the_mean_of_replicates_in_their_standard_deviations(model, cells, monkeypatch):
    elbo = torch.randn(11, 120, generator=torch.Generator().manual_seed(0)).double().numpy()
    # Ten sets of replicates are scored before the cells themselves.
    given = iter(elbo)
    monkeypatch.setattr("scvae_ext.models.described.elbo_of", lambda module, minibatch, n_samples: next(given))
    with evaluating(model.module):
        z = standardised_elbo(model.module, cells(), 0)
    of_replicates = elbo[:10]
    variance = np.square(of_replicates - of_replicates.mean(0)).sum(0) / 9
    np.testing.assert_allclose(z, (elbo[10] - of_replicates.mean(0)) / np.sqrt(variance))


def test_labels_of_cells_play_no_part():
    adata = synthetic_counts(120, 30, n_types=3)
    SemiSupervisedVAE.setup_anndata(adata, labels_key="cell_type")
    model = SemiSupervisedVAE(adata, n_hidden=16, n_latent=3)
    model.train(max_steps=30, enable_progress_bar=False, accelerator="cpu")
    other = adata.copy()
    other.obs["cell_type"] = other.obs["cell_type"].cat.rename_categories(["type_1", "type_2", "type_0"])
    with evaluating(model.module):
        expected, found = (
            standardised_elbo(model.module, Cells(model._align(each), np.arange(120), model.device), 0)
            for each in (adata, other)
        )
    np.testing.assert_allclose(found, expected)
