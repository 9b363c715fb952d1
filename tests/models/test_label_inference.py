"""How labels are held out to ask how often predicted ones are right."""

import numpy as np
import pytest
import torch

from scvae_ext.models import label_inference
from scvae_ext.models.label_inference import calibrate_labels
from scvae_ext.modules import LabelPrior


@pytest.fixture
def stated(monkeypatch):
    """What calibrations are fitted to: probabilities of labels, and the labels."""
    found, fit = [], label_inference.fit_label_calibration
    monkeypatch.setattr(
        label_inference, "fit_label_calibration", lambda *arguments: (found.append(arguments), fit(*arguments))[1]
    )
    return found


def test_labels_are_predicted_from_those_of_the_others(stated):
    """Each label has two cells, of which the other lies among those of another label."""
    label = torch.arange(6).repeat_interleave(2)
    mean = 10 * torch.eye(6)[torch.stack([torch.arange(6), torch.arange(6).roll(1)], 1).ravel()]
    calibrate_labels(LabelPrior(6, 6), mean, torch.full((12, 6), 0.1), label, 0)
    ((probabilities, codes),) = stated
    assert codes.tolist() == label.tolist()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert probabilities[np.arange(12), codes].max() < 0.2


def test_the_only_cell_of_a_label_cannot_be_asked_about(stated):
    mean, variance = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.ones(12, 2)
    label = torch.tensor([0] * 5 + [1] * 4 + [2, 3, 3])
    calibrate_labels(LabelPrior(3, 2), mean, variance, label, 0)
    assert not stated
    label[-1] = 1
    calibrate_labels(LabelPrior(3, 2), mean, variance, label, 0)
    ((probabilities, codes),) = stated
    assert codes.tolist() == [0] * 5 + [1] * 5
    assert probabilities.shape == (10, 3)


def test_labels_are_those_of_draws_from_the_posterior(monkeypatch):
    seen = []
    of_samples = LabelPrior.label_log_probs
    monkeypatch.setattr(
        LabelPrior, "label_log_probs", lambda self, samples: (seen.append(samples), of_samples(self, samples))[1]
    )
    # Cells so far apart that each sample is known to be of the nearest.
    mean, variance = 100.0 * torch.arange(40.0).unsqueeze(1).expand(40, 3), torch.linspace(0.1, 9, 120).view(40, 3)
    calibrate_labels(LabelPrior(2, 3), mean, variance, torch.arange(40) % 2, 0)
    assert [samples.shape for samples in seen] == [(50, 8, 3)] * 5
    for samples in seen:
        cells = (samples[..., 0].mean(0) / 100).round().long()
        noise = (samples - mean[cells]) / variance[cells].sqrt()
        # The same for all cells of a part, and standard normal.
        torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=2e-3, rtol=0)
        assert float(noise.mean((0, 1)).abs().max()) < 4.5 / 50**0.5
        assert float((noise[:, 0].std(0) - 1).abs().max()) < 4.5 / 100**0.5
