from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from interrupts import interrupt_every_training
from scipy import stats

from scvae_ext import SCVAE, Autoencoder
from scvae_ext.datasets import synthetic_counts
from scvae_ext.diagnostics import ZeroInflation, zero_inflation
from scvae_ext.diagnostics._zero_inflation_profile import PI_GRID, GeneProfiles
from scvae_ext.diagnostics._zero_inflation_refits import refit

N_GENES = 50
TRAINING = {"max_steps": 600, "train_size": 0.6, "enable_progress_bar": False}


@pytest.fixture(scope="module")
def simulated():
    """Counts of which half of the genes have extra zeros with a known probability."""
    adata = synthetic_counts(600, N_GENES, n_latent=2, library_size=1000, seed=4)
    rng = np.random.default_rng(0)
    pi = np.where(np.arange(N_GENES) % 2, rng.uniform(0.15, 0.45, N_GENES), 0.0)
    counts = adata.X.toarray()
    counts[rng.random(counts.shape) < pi] = 0
    adata.X = sp.csr_matrix(counts)
    adata.var["pi"] = pi
    SCVAE.setup_anndata(adata)
    return adata


@pytest.fixture(scope="module")
def trained(simulated):
    models = {}

    def train(likelihood):
        if likelihood not in models:
            model = SCVAE(simulated, n_hidden=32, n_latent=3, gene_likelihood=likelihood)
            model.train(**TRAINING)
            models[likelihood] = model
        return models[likelihood]

    return train


@pytest.fixture(scope="module")
def results(trained):
    return {likelihood: zero_inflation(trained(likelihood)) for likelihood in ("nb", "zinb")}


@pytest.fixture(scope="module")
def found(results):
    return results["nb"]


def _check(found, pi):
    frame = found.to_frame()
    supported, is_null = (frame["verdict"] == "supported").to_numpy(), pi == 0
    assert np.count_nonzero(supported & ~is_null) >= 10
    # At most the stated share of the supported genes is wrong, give or take what one draw of the data may do.
    n_wrong, n_supported = np.count_nonzero(supported & is_null), np.count_nonzero(supported)
    assert n_wrong <= stats.binom.ppf(0.999, n_supported, 0.05)
    n_held = np.count_nonzero((frame["lower"] <= pi) & (frame["upper"] >= pi) & supported & ~is_null)
    assert n_held >= stats.binom.ppf(0.001, np.count_nonzero(supported & ~is_null), 0.95)
    assert np.count_nonzero(frame["p_value"][is_null] < 0.05) <= stats.binom.ppf(0.999, np.count_nonzero(is_null), 0.05)
    # What is not needed is small in truth as well.
    assert (pi[(frame["verdict"] == "not needed").to_numpy()] <= found.negligible).mean() >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_true_pi_is_recovered_and_genes_without_are_not_flagged(results, simulated, likelihood):
    _check(results[likelihood], simulated.var["pi"].to_numpy())


def test_held_out_evidence_rises_by_what_pi_is_worth(found, simulated):
    gain, error = found.gain
    assert gain > 4 * error
    of_null = found.to_frame()["evidence_gain"][simulated.var["pi"].to_numpy() == 0]
    assert of_null.sum() < 0.1 * gain


def test_what_is_seen_in_few_cells_is_not_identifiable(found):
    frame = found.to_frame()
    rarest, commonest = (frame.loc[gene] for gene in (frame["detected"].idxmin(), frame["detected"].idxmax()))
    assert rarest["verdict"] == "not identifiable"
    assert rarest["upper"] - rarest["lower"] > 10 * (commonest["upper"] - commonest["lower"])
    assert set(frame["verdict"]) == {"supported", "not needed", "not identifiable"}


def test_one_row_a_gene_with_its_figures(found, trained, simulated):
    frame = found.to_frame()
    assert frame.index.tolist() == simulated.var_names.tolist()
    assert list(frame)[:4] == ["verdict", "pi", "lower", "upper"]
    assert np.isfinite(frame.select_dtypes("number")).all(axis=None)
    held_out = simulated.X[trained("nb").validation_indices]
    np.testing.assert_allclose(frame["detected"], np.asarray((held_out > 0).mean(0)).ravel())
    assert found.profile.shape == (N_GENES, len(PI_GRID))
    assert (found.profile.max(axis=1) <= 0).all()


@pytest.mark.slow
def test_the_same_cells_and_seed_give_the_same_result(trained, simulated):
    cells = trained("nb").validation_indices[:120]
    one, again, other = (zero_inflation(trained("nb"), indices=cells, seed=seed).to_frame() for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one["pi"].equals(other["pi"])
    # Cells may be those of another AnnData.
    copied = zero_inflation(trained("nb"), simulated[cells].copy()).to_frame()
    pd.testing.assert_frame_equal(one, copied, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The effective sample size")
def test_refits_give_a_spread_and_the_evidence_of_the_whole(trained, results):
    model, alone = trained("zinb"), results["zinb"]
    found = zero_inflation(model, n_refits=1, train_options={"max_steps": 600})
    frame = found.to_frame()
    assert (frame["pi_spread"] >= 0).all()
    assert frame["pi_spread"].max() > 0
    # Every fit has to agree, so that support can only be lost.
    assert (found.p_value >= alone.p_value - 1e-9).all()
    assert found.refits.inflated_gain > 0
    assert "Over 2 fits with other seeds" in str(found)
    own = model.get_likelihood_parameters(indices=model.validation_indices)["dropout"].mean(0)
    np.testing.assert_allclose(found.refits.model_pi[0], own)
    assert "model_pi_spread" in frame


@pytest.mark.filterwarnings("ignore:The effective sample size", "ignore:.* cells are few")
def test_refits_of_a_model_without_pi_of_its_own_have_none_to_spread(simulated):
    model = SCVAE(simulated, n_hidden=8, n_latent=2)
    model.train(max_steps=5, train_size=0.6, enable_progress_bar=False)
    frame = zero_inflation(model, indices=range(40), n_refits=1, train_options={"max_steps": 5}).to_frame()
    assert (frame["pi_spread"] >= 0).all()
    assert "model_pi_spread" not in frame


def _result(ratio, upper, **options):
    ratio, upper = np.asarray(ratio, dtype=float), np.asarray(upper, dtype=float)
    zeros = np.zeros(len(ratio))
    profiles = GeneProfiles(
        pi=upper / 2,
        lower=zeros,
        upper=upper,
        likelihood_ratio=ratio,
        profile=np.zeros((len(ratio), len(PI_GRID))),
        curvature=zeros,
        slope=zeros,
        gain=zeros + 0.5,
        gain_error=zeros,
        gain_of_cells=np.array([1.0, 2.0, 3.0, 6.0]),
    )
    options = {"fdr_target": 0.05, "level": 0.95, "negligible": 0.1} | options
    names = pd.Index([f"gene {number}" for number in range(len(ratio))])
    return ZeroInflation(names, 4, zeros + 0.5, profiles, 0.5 * stats.chi2.sf(ratio, 1), **options)


def test_verdicts_follow_from_error_rate_and_interval():
    ratio, upper = [12.0, 0.0, 0.0, 4.0], [0.3, 0.09, 0.11, 0.05]
    found = _result(ratio, upper)
    assert found.verdict.tolist() == ["supported", "not needed", "not identifiable", "supported"]
    assert _result(ratio, upper, negligible=0.2).verdict[2] == "not needed"
    assert _result(ratio, upper, fdr_target=0.01).verdict.tolist()[3] == "not needed"
    # Benjamini and Hochberg: the second smallest of four p-values counts twice.
    assert found.q_value[3] == pytest.approx(2 * 0.5 * stats.chi2.sf(4.0, 1))


def test_the_summary_has_the_figures():
    text = str(_result([12.0, 0.0, 0.0], [0.3, 0.09, 0.11]))
    assert "supported in 1 of 3 genes (false discovery rate 0.05)" in text
    assert "not needed in 1 (pi below 0.1 with 95% confidence), and not identifiable in 1" in text
    assert "+3.000 nats per cell (standard error 1.1)" in text


def test_few_cells_are_said_to_be_few(trained):
    with pytest.warns(UserWarning, match="30 cells are few"):
        zero_inflation(trained("nb"), indices=range(30))


def test_mistakes_are_named(trained, simulated):
    model = trained("nb")
    for options, message in (
        ({"fdr_target": 0.0}, r"fdr_target=0\.0 must lie between 0 and 1"),
        ({"level": 1.0}, r"level=1\.0 must lie"),
        ({"negligible": -0.1}, r"negligible=-0\.1 must lie"),
        ({"n_refits": -1}, "n_refits=-1 must be a whole number"),
        ({"indices": [3]}, "selects 1: pass at least 20"),
    ):
        with pytest.raises(ValueError, match=message):
            zero_inflation(model, **options)
    with pytest.raises(TypeError, match="a likelihood, which Autoencoder has not"):
        zero_inflation(Autoencoder(simulated))
    with pytest.raises(RuntimeError, match="has not been trained"):
        zero_inflation(SCVAE(simulated))
    for likelihood in ("poisson", "normal"):
        with pytest.raises(ValueError, match=f"gene_likelihood='{likelihood}' has none"):
            zero_inflation(SCVAE(simulated, gene_likelihood=likelihood))
    with pytest.raises(ValueError, match='dispersion="gene-cell"'):
        zero_inflation(SCVAE(simulated, dispersion="gene-cell"))


def test_one_gene_cannot_be_predicted_from_others(simulated):
    single = simulated[:, :1].copy()
    single.X = sp.csr_matrix(single.X.toarray() + 1)
    SCVAE.setup_anndata(single)
    with pytest.raises(ValueError, match="the model has one gene"):
        zero_inflation(SCVAE(single))


def test_a_model_that_holds_nothing_out_needs_cells(simulated):
    model = SCVAE(simulated, n_hidden=8, n_latent=2)
    model.train(max_steps=2, train_size=1.0, enable_progress_bar=False)
    with pytest.raises(ValueError, match="holds out no cells"):
        zero_inflation(model)


@pytest.mark.filterwarnings("ignore:The effective sample size", "ignore:.* cells are few")
def test_refits_are_those_of_the_model_however_its_cells_were_set_up_since(tmp_path):
    """Set up for another model, or never: a model that is loaded has its own registry."""
    adata = synthetic_counts(100, 6)
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    SCVAE.setup_anndata(adata)
    model = SCVAE(adata, n_hidden=4, n_latent=1)
    model.train(max_steps=5, train_size=0.6, enable_progress_bar=False)
    model.save(tmp_path / "model")

    def gain(model):
        def ask(other):
            assert other.registry == model.registry
            return np.zeros(6), np.zeros(6)

        return refit(model, None, range(40), np.zeros(6), 1, {"max_steps": 5}, ask).inflated_gain

    expected = gain(model)
    SCVAE.setup_anndata(adata, batch_key="batch")
    assert gain(model) == expected
    del adata.uns["scvae_ext"]
    assert gain(SCVAE.load(tmp_path / "model", adata)) == expected


@pytest.mark.filterwarnings("ignore:The effective sample size", "ignore:.* cells are few")
def test_refits_are_trained_on_the_cells_that_the_model_was_trained_on(simulated):
    """Whatever their seeds, or they would have seen the cells that are asked about."""
    model = SCVAE(simulated.copy(), n_hidden=8, n_latent=2, seed=3)
    model.train(max_steps=5, train_size=0.6, validation_size=0.2, seed=7, enable_progress_bar=False)
    others = []

    def ask(other):
        others.append(other)
        return np.zeros(model.registry.n_genes), np.zeros(model.registry.n_genes)

    refit(model, None, model.validation_indices[:5], np.zeros(model.registry.n_genes), 2, {"max_steps": 5}, ask)
    assert [other.seed for other in others] == [4, 5]
    for other in others:
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(other, f"{name}_indices"), getattr(model, f"{name}_indices"))


@pytest.mark.filterwarnings("ignore:The effective sample size", "ignore:.* cells are few")
def test_an_interrupt_ends_the_refits(simulated, monkeypatch):
    model = SCVAE(simulated, n_hidden=8, n_latent=2)
    model.train(max_steps=5, train_size=0.6, enable_progress_bar=False)
    trainings = interrupt_every_training(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        zero_inflation(model, indices=range(40), n_refits=2, train_options={"max_steps": 500})
    assert len(trainings) == 1


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_refits_give_the_smallest_ratio_and_what_zero_inflation_gains(simulated, likelihood, monkeypatch):
    """Whichever of the two the model is; the gain of each cell is known here."""
    gain = np.array([1.0, 2.0, 6.0])

    def evidence_of(model, adata, indices):
        is_inflated = model._options["gene_likelihood"] == "zinb"
        return SimpleNamespace(log_evidence=np.array([-5.0, 3.0, 0.5]) + gain * is_inflated)

    monkeypatch.setattr("scvae_ext.diagnostics._zero_inflation_refits.evidence", evidence_of)
    model = SCVAE(simulated.copy(), n_hidden=4, n_latent=1, gene_likelihood=likelihood)
    model.train(max_steps=1, train_size=0.6, enable_progress_bar=False)
    ratios = [np.linspace(0, 4, N_GENES), np.linspace(3, 1, N_GENES)]
    answers = iter([(ratio, np.ones(N_GENES)) for ratio in ratios])
    found = refit(model, None, range(3), np.zeros(N_GENES), 2, {"max_steps": 1}, lambda other: next(answers))
    np.testing.assert_array_equal(found.likelihood_ratio, np.minimum(*ratios))
    assert found.inflated_gain == pytest.approx(3)
    assert found.inflated_gain_error == pytest.approx(np.sqrt(7 / 3))
    np.testing.assert_allclose(found.pi_spread, np.sqrt(1 / 3))
