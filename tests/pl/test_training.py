from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvae_ext import pl


@pytest.fixture
def frame():
    step = np.arange(10, 510, 10)
    train = -600.0 - 5000.0 * np.exp(-step / 20)
    return pd.DataFrame(
        {
            "step": step,
            "epoch": step // 5,
            "elbo_train": train,
            "kl_train": 10.0 + 1e-3 * step,
            "elbo_validation": train - 10.0 - ((step - 300) / 100.0) ** 2,
            "kl_validation": 11.0 + np.abs(step - 200),
            "kl_weight": np.minimum(step / 150, 1.0),
        }
    )


def _lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_draws_both_curves_over_steps(frame):
    ax = pl.history(SimpleNamespace(history=frame))
    lines = _lines(ax)
    np.testing.assert_array_equal(lines["training cells"], frame[["step", "elbo_train"]])
    np.testing.assert_array_equal(lines["held-out cells"], frame[["step", "elbo_validation"]])
    assert ax.get_xlabel() == "Optimiser step"
    assert ax.get_ylabel() == "ELBO (nats per cell)"


@pytest.mark.parametrize(("metric", "step"), [("elbo", 300), ("kl", 200)])
def test_marks_the_best_held_out_value(frame, metric, step):
    # The ELBO is best where it is highest, a divergence where it is lowest.
    frame["elbo_validation"] = -600.0 - (frame["step"] - 300.0) ** 2
    best = next(xy for label, xy in _lines(pl.history(frame, metric)).items() if label.startswith("best"))
    value = frame.loc[frame["step"] == step, f"{metric}_validation"].item()
    np.testing.assert_allclose(best, [[step, value]])


def test_marks_where_the_kl_weight_reaches_one(frame):
    np.testing.assert_array_equal(_lines(pl.history(frame))["KL weight reaches 1"][:, 0], 150)
    assert "KL weight reaches 1" not in _lines(pl.history(frame.assign(kl_weight=1.0)))


def test_the_steep_beginning_is_left_out(frame):
    low, high = pl.history(frame).get_ylim()
    settled = frame.loc[frame["step"] >= 50, ["elbo_train", "elbo_validation"]]
    assert frame["elbo_train"].iloc[0] < low < settled.min(axis=None)
    assert high > settled.max(axis=None)


def test_without_held_out_cells(frame):
    ax = pl.history(frame[["step", "elbo_train"]])
    assert list(_lines(ax)) == ["training cells"]


def test_the_objective_of_an_autoencoder(frame):
    renamed = frame[["step"]].assign(mse_train=1.0 / frame["step"], mse_validation=2.0 / frame["step"])
    ax = pl.history(renamed)
    assert ax.get_ylabel() == "Mean squared error"
    assert _lines(ax)["best: 0.004"][0, 0] == 500


def test_draws_on_the_given_axes_and_saves(frame, tmp_path):
    _, ax = plt.subplots()
    assert pl.history(frame, ax=ax, save=tmp_path / "curve.png") is ax
    assert plt.imread(tmp_path / "curve.png").ndim == 3


def test_mistakes_are_named(frame):
    with pytest.raises(ValueError, match=r"call model\.train\(\) first"):
        pl.history(pd.DataFrame())
    with pytest.raises(ValueError, match=r"no metric 'loss'; choose one of \['elbo', 'kl'\]"):
        pl.history(frame, "loss")
