import numpy as np
import pandas as pd
import pytest
import torch
from interrupts import CtrlC
from scipy import stats

import scvae_ext as sv
from scvae_ext.analysis import ExpressionInterval, calibrate_intervals, interval_level

LEVELS = (0.5, 0.8, 0.9, 0.95)


@pytest.fixture(scope="module")
def trained():
    adata = sv.datasets.synthetic_counts(1000, 200, n_batches=2, seed=1)
    sv.SCVAE.setup_anndata(adata, batch_key="batch")
    model = sv.SCVAE(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    model.calibrate_intervals(train_options={"accelerator": "cpu"})
    return model


@pytest.fixture
def restored(trained):
    """Give the model for a calibration of one's own, and put that of the other tests back."""
    replicate = trained._replicate
    yield trained
    trained._replicate = replicate


def _gaussian_errors(seed, n_cells=400, scales=(1.0, 0.3)):
    """Errors of 40 rare and 40 abundant genes, whose true standard deviations are ``scales``."""
    scale = np.repeat(scales, 40)
    return scale * np.random.default_rng(seed).normal(size=(n_cells, 80)), np.repeat([0.1, 5.0], 40)


def test_calibrated_intervals_hold_new_errors_as_often_as_they_say():
    errors, mean_counts = _gaussian_errors(0)
    sd = np.full(errors.shape, 0.2)
    found = calibrate_intervals(errors, sd, mean_counts)
    fresh, _ = _gaussian_errors(1)
    for level in (*LEVELS, 0.37):
        inside = np.abs(fresh) <= found.half_width(sd, level)
        # 400 x 40 independent errors in each half, and as many to calibrate on.
        for half in (inside[:, :40], inside[:, 40:]):
            assert half.mean() == pytest.approx(level, abs=4 * np.sqrt(2 * level * (1 - level) / 16_000))


def test_what_the_posterior_leaves_out_has_its_closed_form():
    errors, mean_counts = _gaussian_errors(0, n_cells=5000)
    found = calibrate_intervals(errors, np.full(errors.shape, 0.2), mean_counts)
    bins = found.to_frame()
    assert len(bins) == 4
    np.testing.assert_allclose(bins["extra_sd"], np.sqrt([0.96, 0.96, 0.05, 0.05]), rtol=0.02)
    np.testing.assert_allclose(bins["multiplier_0.95"], stats.norm.ppf(0.975), rtol=0.02)
    np.testing.assert_allclose(bins["multiplier_0.5"], stats.norm.ppf(0.75), rtol=0.02)
    assert bins["n_genes"].tolist() == [20] * 4
    np.testing.assert_allclose(bins["mean_counts"], [0.1, 0.1, 5.0, 5.0])


def test_coverage_of_the_posterior_alone_has_its_closed_form():
    errors, mean_counts = _gaussian_errors(0, n_cells=5000, scales=(0.4, 0.4))
    found = calibrate_intervals(errors, np.full(errors.shape, 0.2), mean_counts)
    assert found.posterior_coverage == pytest.approx(2 * stats.norm.cdf(1.6448536 / 2) - 1, abs=0.005)
    assert f"hold {100 * found.posterior_coverage:.0f} %" in str(found)
    assert "of 5000 cells" in str(found)


def test_a_posterior_that_is_right_is_left_alone():
    rng = np.random.default_rng(0)
    sd = rng.uniform(0.5, 2, size=(2000, 40))
    found = calibrate_intervals(sd * rng.normal(size=sd.shape), sd, np.ones(40))
    np.testing.assert_allclose(found.half_width(sd, 0.9), 1.6448536 * sd, rtol=0.1)


def test_errors_to_one_side_count_in_full():
    """An interval about an estimate that is too low by one has to reach that far, whatever errors scatter by."""
    errors = 1 + 0.01 * np.random.default_rng(0).normal(size=(400, 40))
    found = calibrate_intervals(errors, np.full(errors.shape, 0.2), np.ones(40))
    np.testing.assert_allclose(found.half_width(np.full((1, 40), 0.2), 0.5), 1.0, rtol=0.01)


def test_widths_follow_the_genes_asked_for():
    errors, mean_counts = _gaussian_errors(0)
    sd = np.full(errors.shape, 0.2)
    found = calibrate_intervals(errors, sd, mean_counts)
    chosen = np.array([70, 3])
    np.testing.assert_array_equal(found.half_width(sd[:, chosen], 0.8, chosen), found.half_width(sd, 0.8)[:, chosen])


def test_a_posterior_without_spread_gets_one():
    errors, mean_counts = _gaussian_errors(0)
    found = calibrate_intervals(errors, np.zeros(errors.shape), mean_counts)
    half = found.half_width(np.zeros(errors.shape), 0.9)
    assert half[0, 0] == pytest.approx(1.645, rel=0.03)
    assert found.posterior_coverage == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_errors_that_are_not_finite(bad):
    errors, mean_counts = _gaussian_errors(0)
    errors[3, 5] = bad
    with pytest.raises(ValueError, match="not finite"):
        calibrate_intervals(errors, np.ones(errors.shape), mean_counts)


@pytest.mark.parametrize("level", [0, 1, 90, -0.5, 0.995, float("nan"), True])
def test_levels_that_are_none(level):
    with pytest.raises(ValueError, match=r"pass a number from 0\.01 to 0\.99"):
        interval_level(level)


def test_a_result_as_a_table_and_in_words():
    lower, upper = np.array([[1.0, 2.0]]), np.array([[4.0, 8.0]])
    names = pd.Index(["cell"]), pd.Index(["b", "a"])
    result = ExpressionInterval(lower, np.sqrt(lower * upper), upper, 0.8, *names)
    assert result.to_frame().loc[("cell", "a")].tolist() == [2.0, 4.0, 8.0]
    assert result.to_frame().index.names == ["cell", "gene"]
    assert str(result).startswith("80 % intervals of 2 genes in 1 cells")
    assert "factor of 2.00" in str(result)


@pytest.mark.slow
def test_intervals_of_expression_hold_the_known_truth(trained):
    truth = trained.adata.layers["expression"]
    for level in LEVELS:
        found = trained.get_normalized_expression(interval=level, key_added=None)
        inside = (truth >= found.lower) & (truth <= found.upper)
        assert inside.mean() == pytest.approx(level, abs=0.05)


def test_the_posterior_alone_does_not(trained):
    truth = np.log(trained.adata.layers["expression"])
    draws = np.log(trained.get_normalized_expression(n_samples=40, return_mean=False, key_added=None))
    lower, upper = np.quantile(draws, [0.05, 0.95], axis=0)
    assert ((truth >= lower) & (truth <= upper)).mean() < 0.8


def test_cells_genes_and_slots(trained):
    genes = ["gene_7", "gene_2"]
    cells = ["cell_5", "cell_600", "cell_0"]
    whole = trained.get_normalized_expression(interval=0.9)
    for name in ("lower", "median", "upper"):
        np.testing.assert_array_equal(trained.adata.layers[f"scvae_normalized_{name}"], getattr(whole, name))
        some = trained.get_normalized_expression(indices=cells, gene_list=genes, interval=0.9)
        expected = getattr(whole, name)[np.ix_([5, 600, 0], [7, 2])]
        np.testing.assert_allclose(getattr(some, name), expected, rtol=1e-4)
        assert some.obs_names.tolist() == cells
        assert some.var_names.tolist() == genes
    assert "scvae_normalized" not in trained.adata.layers
    assert (whole.lower < whole.median).all()
    assert (whole.median < whole.upper).all()


def test_depth_scales_an_interval(trained):
    one = trained.get_normalized_expression(interval=0.8, key_added=None)
    ten = trained.get_normalized_expression(interval=0.8, library_size=10, key_added=None)
    np.testing.assert_allclose(ten.upper, 10 * one.upper, rtol=1e-4)
    own = trained.get_normalized_expression(interval=0.8, library_size="latent", key_added=None)
    depth = np.asarray(trained.adata.X.sum(1))
    np.testing.assert_allclose(own.lower, depth * one.lower, rtol=1e-4)


def test_intervals_in_another_batch_hold_its_truth(trained):
    adata = trained.adata
    found = trained.get_normalized_expression(transform_batch="batch_1", interval=0.9, key_added=None)
    latent = adata.obsm["latent"].astype(float)
    log_truth = adata.var["log_baseline"].to_numpy() + latent @ adata.varm["loadings"].T
    truth = np.exp(log_truth + adata.varm["batch_effect"][:, 1])
    truth /= truth.sum(1, keepdims=True)
    assert ((truth >= found.lower) & (truth <= found.upper)).mean() == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("option", [{"return_mean": False}, {"return_numpy": True}, {"out": "somewhere.h5ad"}])
def test_options_that_intervals_cannot_have(trained, option):
    with pytest.raises(ValueError, match="leave return_mean"):
        trained.get_normalized_expression(interval=0.9, **option)


def test_intervals_need_counts():
    adata = sv.datasets.synthetic_counts(100, 20)
    sv.SCVAE.setup_anndata(adata)
    model = sv.SCVAE(adata, gene_likelihood="normal", n_latent=2)
    model.train(max_steps=2, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match='the model has "normal"'):
        model.get_normalized_expression(interval=0.9)


def test_calibration_follows_its_seed_and_leaves_the_state_of_the_caller(restored):
    options = {"accelerator": "cpu", "max_steps": 3}
    before = torch.random.get_rng_state()
    first = restored.calibrate_intervals(train_options=options, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = restored.calibrate_intervals(train_options=options, seed=4)
    np.testing.assert_allclose(first.multipliers, again.multipliers, rtol=1e-3)
    other = restored.calibrate_intervals(train_options=options, seed=5)
    assert not np.allclose(first.multipliers, other.multipliers, rtol=1e-3)


def test_new_weights_need_a_new_calibration(restored, monkeypatch):
    assert restored._refitted() is restored._replicate
    asked = []
    monkeypatch.setattr(restored, "calibrate_intervals", lambda: asked.append(True))
    bias = restored.module.likelihood.expression_head.linear.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias.add_(torch.linspace(0, 0.1, len(bias)))
        restored._refitted()
        bias.copy_(before)
    restored._refitted()
    assert asked == [True]


def test_an_interrupted_calibration_is_none(restored):
    restored._replicate = None
    with pytest.raises(KeyboardInterrupt):
        restored.calibrate_intervals(train_options={"accelerator": "cpu", "max_steps": 500, "callbacks": CtrlC()})
    assert restored._replicate is None
