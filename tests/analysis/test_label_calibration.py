import numpy as np
import pytest

from scvae_ext.analysis import LabelCalibration, fit_label_calibration


def simulated(n_cells=4000, seed=0):
    """Probabilities of four labels, and labels drawn from them."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(n_cells, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = (probabilities.cumsum(axis=1) > random.random((n_cells, 1))).argmax(axis=1)
    return probabilities, label, random


def sharpened(probabilities, temperature):
    raised = probabilities**temperature
    return raised / raised.sum(axis=1, keepdims=True)


def test_probabilities_that_are_right_stay_as_they_are():
    probabilities, label, _ = simulated()
    found = fit_label_calibration(probabilities, label)
    assert found.temperature == pytest.approx(1, abs=0.06)
    assert found.noise < 0.01
    # What is less sure than it might be is not made surer.
    assert fit_label_calibration(sharpened(probabilities, 0.5), label).temperature == pytest.approx(1)


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_what_is_too_sure_by_a_temperature_is_found(temperature):
    probabilities, label, _ = simulated()
    found = fit_label_calibration(sharpened(probabilities, temperature), label)
    assert found.temperature == pytest.approx(temperature, rel=0.12)
    np.testing.assert_allclose(found.apply(sharpened(probabilities, temperature)), probabilities, atol=0.03)


def test_labels_without_a_rule_are_found():
    probabilities, label, random = simulated(8000)
    is_noise = random.random(len(label)) < 0.2
    label = np.where(is_noise, random.integers(0, 4, len(label)), label)
    found = fit_label_calibration(probabilities, label)
    assert found.noise == pytest.approx(0.2, abs=0.03)
    assert found.temperature == pytest.approx(1, abs=0.1)


def test_few_labels_change_little_and_impossible_ones_are_survived():
    probabilities, label, _ = simulated(10)
    assert fit_label_calibration(probabilities, label).temperature < 3
    certain = np.eye(4)[[0, 1, 2, 3] * 5]
    wrong = fit_label_calibration(certain, np.zeros(20, dtype=np.int64))
    assert np.isfinite([wrong.temperature, wrong.noise]).all()
    assert wrong.noise > 0.2


def test_rows_sum_to_one_the_most_probable_label_stays_and_nothing_is_changed_in_place():
    probabilities, _, _ = simulated(50)
    probabilities = probabilities.astype(np.float32)
    before = probabilities.copy()
    for calibration in (LabelCalibration(), LabelCalibration(3.0, 0.1)):
        found = calibration.apply(probabilities)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_array_equal(probabilities, before)
    np.testing.assert_allclose(LabelCalibration().apply(probabilities), probabilities, rtol=1e-5)
