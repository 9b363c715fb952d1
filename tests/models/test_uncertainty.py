import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.stats import binom, norm

from scvae_ext import SCVAE
from scvae_ext.models.uncertainty import STEP, _prior_precision

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
LINEAR = {"n_hidden": 32, "n_latent": 2, "gene_likelihood": "poisson", "decoder": "linear"}
NUMBERS = ["entropy", "information", "laplace_entropy", "label_entropy", "label_probability"]


def test_is_written_with_where_it_came_from(model, adata):
    frame = model.get_cell_uncertainty(labels_key="cell_type")
    assert frame.columns.tolist() == [*NUMBERS, "label"]
    for name in NUMBERS:
        np.testing.assert_array_equal(adata.obs[f"scvae_uncertainty_{name}"], frame[name])
    entry = json.loads(adata.uns["scvae_ext"])["results"]['obs["scvae_uncertainty_entropy"]']
    assert entry["arguments"]["labels_key"] == "cell_type"
    assert frame["label"].cat.categories.tolist() == ["type_0", "type_1", "type_2"]


def test_entropy_is_that_of_the_posterior(model):
    variance = model.get_latent_representation(return_dist=True)[1].astype(float)
    expected = norm(scale=np.sqrt(variance)).entropy().sum(1)
    found = model.get_cell_uncertainty(key_added=None)
    assert found.columns.tolist() == NUMBERS[:3]
    np.testing.assert_allclose(found["entropy"], expected, rtol=1e-6)


def test_labels_of_neighbours_are_mostly_the_cells_own(model, adata):
    frame = model.get_cell_uncertainty(labels_key="cell_type", key_added=None)
    own = adata.obs["cell_type"].astype(str)
    n_right = (frame["label"].astype(str) == own).sum()
    # More than a guess of the most frequent label gets right but once in 10,000 times.
    assert n_right > binom.isf(1e-4, len(own), own.value_counts(normalize=True).max())
    # Entropy lies between that of as many equally frequent labels as the most frequent allows, and that where the
    # others share the rest evenly.
    p, rest = frame["label_probability"], np.maximum(1 - frame["label_probability"], 1e-300)
    assert (frame["label_entropy"] > -np.log(p) - 1e-9).all()
    assert (frame["label_entropy"] < -p * np.log(p) - rest * np.log(rest / 2) + 1e-9).all()


@pytest.mark.parametrize("kind", ["simplex", "normal", "latent library"])
def test_other_models_have_it_as_well(load, kind):
    frame = load(kind).get_cell_uncertainty(labels_key="cell_type", key_added=None)
    assert np.isfinite(frame[NUMBERS]).all(axis=None)


def test_cells_come_in_the_asked_order_with_the_values_that_they_have_among_all(model, adata):
    whole = model.get_cell_uncertainty(key_added=None)
    chosen = [50, 3, 119]
    pd.testing.assert_frame_equal(model.get_cell_uncertainty(indices=chosen, key_added=None), whole.iloc[chosen])
    other = adata[chosen].copy()[:, ::-1].copy()
    pd.testing.assert_frame_equal(model.get_cell_uncertainty(other), whole.iloc[chosen], rtol=1e-4)
    assert other.obs["scvae_uncertainty_entropy"].notna().all()


def test_neighbours_may_be_looked_for_among_some_cells(model):
    options = {"labels_key": "cell_type", "key_added": None, "n_neighbors": 3}
    everywhere = model.get_cell_uncertainty(**options)
    pd.testing.assert_frame_equal(model.get_cell_uncertainty(**options, num_cells_posterior=120), everywhere)
    some = model.get_cell_uncertainty(**options, num_cells_posterior=40)
    assert not some["label_entropy"].equals(everywhere["label_entropy"])
    pd.testing.assert_frame_equal(model.get_cell_uncertainty(**options, num_cells_posterior=40), some)
    assert (some["label"] == everywhere["label"]).mean() > 0.8


def test_cells_without_a_label_are_no_neighbours(model, adata):
    adata.obs["some"] = adata.obs["cell_type"].where(adata.obs["cell_type"] != "type_2")
    frame = model.get_cell_uncertainty(labels_key="some", key_added=None)
    assert set(frame["label"].astype(str)) == {"type_0", "type_1"}


def simulate_linear(depth):
    """Poisson counts from two factors, in the mean of given numbers a cell."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, 40) + rng.normal(size=(len(depth), 2)) @ rng.normal(0, 0.5, (2, 40))
    mean = depth[:, None] * np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = rng.poisson(mean).astype(np.float32)
    adata = AnnData(sp.csr_matrix(counts[counts.sum(1) > 0]))
    SCVAE.setup_anndata(adata)
    return adata


def train(adata, max_steps):
    model = SCVAE(adata, **LINEAR)
    model.train(max_steps=max_steps, **QUIET)
    return model


@pytest.fixture(scope="module")
def linear():
    """Model of cells of 15 to 600 counts."""
    depth = np.exp(np.random.default_rng(7).uniform(np.log(15), np.log(600), 1000))
    return train(simulate_linear(depth), max_steps=1000)


def paired(values):
    """Mean over cells of the differences between steps, in its standard errors: four are exceeded once in 30,000."""
    differences = np.diff(values, axis=0)
    return differences.mean(1) / (differences.std(1, ddof=1) / np.sqrt(differences.shape[1]))


def laplace_by_hand(model, adata=None, prior=(1.0, 1.0)):
    """Entropy by the Fisher information of a log-linear Poisson model, and a bound of what finite differences change.

    A derivative of exp(az) by a central difference of step h is sinh(ah) / (ah) times the right one, which is
    1 + (ah)^2 / 6. Loadings are relative to their mean by the shares of genes: |a| is at most their range, and a
    relative error of the derivatives by r changes each of the dimensions' half log precisions by r at most.
    """
    loadings = model.module.loadings.detach().double().numpy()
    mean = model.get_likelihood_parameters(adata)["mean"].astype(float)
    centred = loadings - (mean @ loadings / mean.sum(1, keepdims=True))[:, None, :]
    precision = np.diag(prior) + np.einsum("cg,cgd,cge->cde", mean, centred, centred)
    entropy = 0.5 * (2 * np.log(2 * np.pi * np.e) - np.linalg.slogdet(precision)[1])
    return entropy, 2 * (STEP / np.sqrt(min(prior)) * np.ptp(loadings, axis=0).max()) ** 2 / 6 + 1e-4


@pytest.mark.slow
def test_grows_as_counts_are_thinned(linear):
    rng = np.random.default_rng(1)
    entropy, information = [], []
    deep = linear.adata[np.asarray(linear.adata.X.sum(1)).ravel() > 300]
    for share in (1.0, 0.5, 0.25, 0.1):
        thinned = deep.copy()
        thinned.X = sp.csr_matrix(rng.binomial(deep.X.toarray().astype(int), share).astype(np.float32))
        frame = linear.get_cell_uncertainty(thinned, key_added=None)
        entropy.append(frame["entropy"])
        information.append(frame["information"])
    assert (paired(entropy) > 4).all()
    assert (paired(information) < -4).all()


def test_entropy_by_the_decoder_grows_beyond_the_depths_that_were_trained_on(linear):
    """Counts become fewer; the entropy is that of the closed form all the way."""
    size = np.asarray(linear.adata.X.sum(1)).ravel()
    entropy = []
    for share in (1.0, 0.5, 0.25, 0.1, 0.02):
        thinned = linear.adata[size > 300].copy()
        thinned.X = sp.csr_matrix(np.maximum(np.rint(share * thinned.X.toarray()), np.eye(40)[0]).astype(np.float32))
        entropy.append(linear.get_cell_uncertainty(thinned, key_added=None)["laplace_entropy"])
        expected, error = laplace_by_hand(linear, thinned)
        np.testing.assert_allclose(entropy[-1], expected, rtol=0, atol=error)
    assert (paired(entropy) > 4).all()


def test_entropy_by_the_decoder_is_that_of_the_closed_form(linear):
    expected, error = laplace_by_hand(linear)
    found = linear.get_cell_uncertainty(key_added=None)["laplace_entropy"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=error)


def with_prior(model, n_components, mean, scale):
    """The same networks with a mixture of Gaussians as prior."""
    other = SCVAE(model.adata, **LINEAR, prior="mixture", n_prior_components=n_components)
    other.train(max_steps=1, **QUIET)
    other.module.load_state_dict(model.module.state_dict(), strict=False)
    with torch.no_grad():
        other.module.prior.mean.copy_(torch.tensor(mean))
        other.module.prior.log_scale.copy_(torch.tensor(scale).log())
        other.module.prior.logits.zero_()
    return other


def test_entropy_by_the_decoder_knows_the_precision_of_a_learned_prior(linear):
    whole = linear.get_cell_uncertainty(key_added=None)["laplace_entropy"]
    standard = with_prior(linear, 1, [[0.0, 0.0]], [[1.0, 1.0]])
    np.testing.assert_allclose(standard.get_cell_uncertainty(key_added=None)["laplace_entropy"], whole, atol=1e-5)
    narrow = with_prior(linear, 1, [[0.5, -0.5]], [[0.1, 0.4]])
    expected, error = laplace_by_hand(narrow, prior=(100.0, 6.25))
    np.testing.assert_allclose(
        narrow.get_cell_uncertainty(key_added=None)["laplace_entropy"], expected, rtol=0, atol=error
    )
    # Of two Gaussians far apart each cell has the precision of its own, and between them there is one as well.
    both = with_prior(linear, 2, [[-30.0, 0.0], [30.0, 0.0]], [[1.0, 0.5], [1.0, 1.0]])
    found = both.get_cell_uncertainty(key_added=None)["laplace_entropy"]
    assert np.isfinite(found).all()
    first = linear.get_latent_representation(key_added=None)[:, 0]
    (of_left, error), (of_right, _) = (laplace_by_hand(linear, prior=prior) for prior in ((1.0, 4.0), (1.0, 1.0)))
    for chosen, expected in ((first < -0.5, of_left), (first > 0.5, of_right)):
        assert chosen.sum() > 100
        np.testing.assert_allclose(found[chosen], expected[chosen], rtol=0, atol=error)


def test_entropy_is_that_of_the_exact_posterior(linear):
    """By Laplace's approximation: the inverse of the Fisher information and the prior.

    A diagonal Gaussian that is fitted by the ELBO has as variances the inverse of the diagonal of the precision.
    """
    loadings = linear.module.loadings.detach().double().numpy()
    mean = linear.get_likelihood_parameters()["mean"].astype(float)
    total = mean.sum(1)
    centred = loadings - (mean @ loadings / total[:, None])[:, None, :]
    precision = 1.0 + (mean[:, :, None] * centred**2).sum(1)
    expected = 0.5 * np.log(2 * np.pi * np.e / precision).sum(1)
    found = linear.get_cell_uncertainty(key_added=None)["entropy"]
    # An error of the logarithm of a standard deviation by e changes the share of a 90 % interval by 2 x phi(x) e, with
    # x = 1.64. Below 0.11 in each dimension that is less than four standard errors of 1,000 cells.
    x = norm.isf(0.05)
    of_one = 4 * 0.3 / np.sqrt(len(found)) / (2 * x * norm.pdf(x))
    assert found.mean() == pytest.approx(expected.mean(), abs=2 * of_one)
    assert np.corrcoef(found, expected)[0, 1] > 0.8


@torch.no_grad()
def draw(model, rng):
    """States from the aggregated posterior, and counts from the decoder there, of the cells' own depths."""
    mean, variance = model.get_latent_representation(return_dist=True)
    state = mean + np.sqrt(variance) * rng.normal(size=mean.shape)
    source = model._own_source().minibatch(np.arange(len(state)))
    px = model.module.decode(torch.from_numpy(state.astype(np.float32)), source)
    return state, rng.poisson(px.mean.numpy()).astype(np.float32)


def test_posteriors_hold_the_states_that_cells_were_drawn_from(linear):
    """Simulation-based calibration: states from the aggregated posterior, counts from the decoder, and back."""
    state, drawn = draw(linear, np.random.default_rng(2))
    state, drawn = state[drawn.sum(1) > 0], drawn[drawn.sum(1) > 0]
    drawn = AnnData(sp.csr_matrix(drawn), var=linear.adata.var)
    found, spread = linear.get_latent_representation(drawn, return_dist=True)
    standardised = (state - found) / np.sqrt(spread)
    # The encoder is no exact posterior, and chance alone would allow 6 and 4 points (four standard errors of 1,000
    # cells): ten are what the documentation states, of each dimension by itself.
    for level in (0.5, 0.9):
        inside = (np.abs(standardised) < norm.ppf(0.5 + level / 2)).mean(0)
        np.testing.assert_allclose(inside, level, rtol=0, atol=0.1)


@pytest.mark.slow
def test_a_model_of_one_depth_is_too_sure_of_shallower_cells():
    """The limit that the documentation names: the encoder does not extrapolate; the decoder's entropy alone grows."""
    model = train(simulate_linear(np.full(600, 300.0)), max_steps=500)
    rng = np.random.default_rng(2)
    state, drawn = draw(model, rng)
    quarter = AnnData(sp.csr_matrix(rng.binomial(drawn.astype(int), 0.25).astype(np.float32)), var=model.adata.var)
    found, spread = model.get_latent_representation(quarter, return_dist=True)
    inside = (np.abs(state - found) < norm.ppf(0.95) * np.sqrt(spread)).mean(0)
    assert (inside < 0.9 - 4 * 0.3 / np.sqrt(len(state))).all()
    whole = AnnData(sp.csr_matrix(drawn), var=model.adata.var)
    one, two = (model.get_cell_uncertainty(each, key_added=None) for each in (whole, quarter))
    assert paired([one["laplace_entropy"], two["laplace_entropy"]])[0] > 4
    assert paired([one["entropy"], two["entropy"]])[0] < -4
    expected, error = laplace_by_hand(model, quarter)
    np.testing.assert_allclose(two["laplace_entropy"], expected, rtol=0, atol=error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels_key": "celltype"}, "labels_key='celltype' is not a column .*Did you mean 'cell_type'"),
        ({"labels_key": "cell_type", "n_neighbors": 200}, "n_neighbors=200 needs more cells .* than the 120"),
        (
            {"labels_key": "cell_type", "num_cells_posterior": 15},
            r"n_neighbors=15 needs more .* than the 15 that are looked at \(num_cells_posterior=15\)",
        ),
        ({"labels_key": "cell_type", "num_cells_posterior": 0}, "num_cells_posterior=0 must be a whole number"),
        ({"n_samples": 0}, "n_samples=0 must be a whole number"),
    ],
)
def test_says_what_is_wrong(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.get_cell_uncertainty(**options)


def test_labels_that_are_all_missing_are_refused(model, adata):
    adata.obs["none"] = pd.Categorical([None] * 120, categories=["a"])
    with pytest.raises(ValueError, match=r"obs\['none'\] holds no label"):
        model.get_cell_uncertainty(labels_key="none")


def test_a_model_without_cells_asks_for_them(load, adata):
    model = load()
    model._adata = None
    with pytest.raises(ValueError, match="loaded without an AnnData"):
        model.get_cell_uncertainty(adata)


def test_cells_of_a_view_or_copy_are_none_of_their_own_neighbours(model, adata):
    adata.obs["random"] = np.random.default_rng(0).permutation([str(i) for i in range(60)] * 2)
    asked = {"labels_key": "random", "n_neighbors": 1, "key_added": None}
    expected = model.get_cell_uncertainty(indices=range(100), **asked)
    # A pair of cells shares each label: hardly one is the nearest of the other.
    assert (expected["label"].astype(str) == adata.obs["random"].iloc[:100]).sum() < 10
    for some in (adata[:100], adata[:100].copy()):
        pd.testing.assert_frame_equal(model.get_cell_uncertainty(some, **asked), expected)


def test_precision_of_a_mixture_is_averaged_by_how_probable_its_gaussians_are(linear):
    other = with_prior(linear, 2, [[-1.0, 0.0], [1.0, 0.5]], [[0.5, 2.0], [1.5, 0.4]])
    with torch.no_grad():
        other.module.prior.logits.copy_(torch.tensor([0.3, -0.4]))
        z = torch.tensor([[0.0, 0.2], [-0.5, 0.0], [2.0, 1.0]])
        found = _prior_precision(other.module, z).numpy()
    mean, scale = np.array([[-1.0, 0.0], [1.0, 0.5]]), np.array([[0.5, 2.0], [1.5, 0.4]])
    joint = norm(mean, scale).pdf(z.numpy()[:, None]).prod(-1) * np.exp([0.3, -0.4])
    share = joint / joint.sum(1, keepdims=True)
    assert ((share > 0.02) & (share < 0.98)).any()
    np.testing.assert_allclose(found, share @ (1 / scale**2), rtol=1e-4)


def test_a_cell_is_no_neighbour_of_itself_where_others_have_no_label(model, adata):
    # Each cell has a label of its own, but every third.
    adata.obs["own"] = np.where(np.arange(120) % 3 > 0, adata.obs_names, None)
    labelled = adata.obs["own"].notna().to_numpy()
    found = model.get_cell_uncertainty(labels_key="own", n_neighbors=1, key_added=None)
    assert (found["label"].astype(str) != adata.obs["own"])[labelled].all()


def test_entropy_by_the_decoder_is_at_the_mean_of_a_latent_log_library_size(load, monkeypatch):
    model = load("latent library")
    given, decode = [], model.module.decode
    monkeypatch.setattr(model.module, "decode", lambda *arguments: (given.append(arguments[2]), decode(*arguments))[1])
    model.get_cell_uncertainty(key_added=None)
    with torch.no_grad():
        expected = model.module.encode(model._own_source().minibatch(np.arange(120))).log_library.loc
    # The scale of counts, and two points on either side of each of three dimensions.
    assert len(given) == 7
    for log_library in given:
        torch.testing.assert_close(log_library, expected)
