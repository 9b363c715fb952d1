import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from known_model import KnownModel

from scvae_ext import pl
from scvae_ext.diagnostics import Evidence, LikelihoodComparison, posterior_predictive_check

MEANS = {"poisson": -180.0, "nb": -100.0, "zinb": -99.5, "normal": -130.0}


def _evidence(mean, seed):
    log_evidence = mean + np.random.default_rng(seed).normal(0, 2, 50)
    names = pd.Index([f"cell{i}" for i in range(50)])
    ones = np.ones(50)
    return Evidence(names, log_evidence, 0.1 * ones, 50 * ones, log_evidence - 1, log_evidence - 0.5, 100)


@pytest.fixture(scope="module")
def result():
    known = KnownModel(np.linspace(-1, 4, 40), theta=0.7, pi=0.01)
    adata = known.simulate("nb", 400)
    checks = {
        name: posterior_predictive_check(known.model(adata, name), indices=slice(None), n_samples=40) for name in MEANS
    }
    evidence = {name: _evidence(mean, seed) for seed, (name, mean) in enumerate(MEANS.items())}
    return LikelihoodComparison(evidence, checks, {}, {name: [mean] for name, mean in MEANS.items()}, least_gain=1.0)


def test_differences_stand_at_their_names(result):
    panel = pl.compare_likelihoods(result)[0]
    frame = result.to_frame()
    assert [label.get_text() for label in panel.get_yticklabels()] == list(frame.index)
    drawn = [container.lines[0].get_xdata()[0] for container in panel.containers]
    np.testing.assert_allclose(drawn, frame["difference"])
    low, high = panel.get_xlim()
    assert low < (frame["difference"] - 2 * frame["standard_error"]).min()
    assert high > 1.0
    assert "supported" in [text.get_text() for text in panel.texts]


def test_a_likelihood_that_fits_stays_on_the_line(result):
    _, variance, zeros = pl.compare_likelihoods(result)
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in variance.lines}
    assert np.abs(np.log(lines["nb"])).max() < 0.5
    assert lines["poisson"][-1] < 0.3
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in zeros.lines}
    assert np.abs(lines["nb"]).max() < 0.1
    assert lines["poisson"].min() < -0.1
    assert [text.get_text() for text in variance.get_legend().get_texts()] == list(MEANS)


def test_the_verdict_is_the_title(result):
    panels = pl.compare_likelihoods(result)
    assert panels[0].figure.get_suptitle().replace("\n", " ") == result.verdict


def test_saves_to_the_named_file(result, tmp_path):
    pl.compare_likelihoods(result, save=tmp_path / "figure.png")
    assert plt.imread(tmp_path / "figure.png").ndim == 3
