from dataclasses import replace

import pytest
import scipy.sparse as sp
import torch
from minibatches import make_minibatch
from quadrature import one_dimensional_vae
from torch.distributions import Bernoulli, Normal

from scvae_ext.modules import VAE, ImportanceWeightedBound, SampledElbo
from scvae_ext.peaks import AccessiblePeaks

N_PEAKS = 9


def cells(n_cells=12, dtype=torch.float32, **options):
    """Cells of two batches; in the second, accessibility was not measured."""
    minibatch = make_minibatch(n_cells, n_batches=2, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(3)
    seen = (torch.rand(n_cells, N_PEAKS, generator=generator) < 0.4).float()
    seen[:, 0] = 1
    seen[minibatch.batch == 1] = 0
    return replace(minibatch, peaks=AccessiblePeaks.from_csr(sp.csr_matrix(seen.numpy()))), seen


def module(**options):
    vae = VAE(7, n_batches=2, n_hidden=8, n_latent=2, peaks_measured=(True, False), n_peaks=N_PEAKS, **options)
    minibatch, _ = cells()
    vae.accessibility.initialise(minibatch.peaks, minibatch.batch)
    return vae


def test_it_starts_from_shares_of_the_cells_that_were_measured():
    vae = module()
    minibatch, seen = cells()
    seen[:, 3] = 0
    peaks = AccessiblePeaks.from_csr(sp.csr_matrix(seen.numpy()))
    vae.accessibility.initialise(peaks, minibatch.batch)
    of_measured = seen[minibatch.batch == 0]
    assert vae.accessibility.mean_accessible == pytest.approx(float(of_measured.sum(1).mean()))
    # All six cells have the first peak, and none has the fourth, which counts as half a cell.
    share = of_measured.mean(0).clamp(0.5 / 6, 1 - 1e-6)
    expected = (-(1 - share).log()).log()
    torch.testing.assert_close(vae.accessibility.likelihood.log_rate.bias.detach(), expected, atol=1e-3, rtol=1e-3)


def test_cells_without_a_measurement_have_the_mean_depth():
    vae = module()
    minibatch, seen = cells()
    depth = vae.accessibility.depth(minibatch)
    measured = minibatch.batch == 0
    assert (depth[~measured] == 1).all()
    torch.testing.assert_close(depth[measured], seen[measured].sum(1) / seen[measured].sum(1).mean())


def test_the_encoder_sees_standardised_columns_and_zeros_where_nothing_was_measured():
    minibatch, _ = cells(40)
    vae = module().train()
    columns = vae.accessibility.encoder_columns(minibatch)
    measured = minibatch.batch == 0
    assert (columns[~measured] == 0).all()
    torch.testing.assert_close(columns[measured].mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    assert (columns[measured].std(0) > 0.5).all()


def test_the_encoder_sees_a_mean_over_the_accessible_peaks():
    vae = module().eval()
    minibatch, seen = cells()
    projected = (seen @ vae.accessibility.projection.weight) / seen.sum(1, keepdim=True).clamp_min(1)
    scaled = projected * vae.accessibility.mean_accessible.sqrt()
    expected = torch.where(minibatch.batch.unsqueeze(1) == 0, scaled / (1 + 1e-5) ** 0.5, 0.0)
    torch.testing.assert_close(vae.accessibility.encoder_columns(minibatch), expected)


@pytest.mark.parametrize("n_measured", [0, 1])
def test_minibatches_with_hardly_a_measured_cell_train(n_measured):
    minibatch, _ = cells()
    keep = torch.cat([torch.arange(0, 2 * n_measured, 2), torch.arange(1, 12, 2)])
    few = replace(make_minibatch(len(keep), n_batches=2), batch=minibatch.batch[keep], peaks=minibatch.peaks[keep])
    bound = module().train().elbo(few)
    bound.score().mean().backward()
    assert bound.score().isfinite().all()


def test_every_parameter_gets_a_gradient_and_accessibility_is_a_term_of_its_own():
    vae = module()
    minibatch, _ = cells()
    bound = vae.elbo(minibatch)
    bound.score().mean().backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in vae.parameters())
    of_peaks = bound.terms()["reconstruction_accessibility"]
    assert (of_peaks[minibatch.batch == 1] == 0).all()
    assert (of_peaks[minibatch.batch == 0] < 0).all()
    for trainable in (SampledElbo(vae, 2, 0.0), ImportanceWeightedBound(vae, 3)):
        assert "reconstruction_accessibility" in trainable.objective(minibatch).terms()


@torch.no_grad()
def test_the_evidence_is_that_of_counts_and_peaks_by_numerical_integration():
    vae = one_dimensional_vae(n_batches=2, peaks_measured=(True, False), n_peaks=N_PEAKS)
    minibatch, seen = cells(6, torch.float64, n_genes=5)
    vae.accessibility.initialise(minibatch.peaks, minibatch.batch)
    vae.accessibility.likelihood.log_rate.weight.mul_(10)
    points = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    z = points.view(-1, 1, 1).expand(-1, 6, 1)
    likelihood = vae.decode(z, minibatch).log_prob(minibatch.counts.dense()).sum(-1)
    depth = seen.sum(1).double() / vae.accessibility.mean_accessible
    rate = vae.accessibility.likelihood.log_rate(vae.decode_hidden(z, minibatch)).exp() * depth.unsqueeze(-1)
    of_peaks = Bernoulli(-torch.expm1(-rate.clamp_min(1e-9))).log_prob(seen.double()).sum(-1)
    likelihood = likelihood + torch.where(minibatch.batch == 0, of_peaks, 0.0)
    of_z = Normal(0.0, 1.0).log_prob(z).squeeze(-1)
    exact = (likelihood + of_z).logsumexp(0) + (points[1] - points[0]).log()
    weights = vae.log_importance_weights(minibatch, 40_000, torch.Generator().manual_seed(0)).double()
    estimate = weights.logsumexp(0) - torch.tensor(40_000.0).log()
    error = weights.sub(estimate).exp().std(0) / 40_000**0.5
    assert float(((estimate - exact).abs() / error).max()) < 4.5


def test_a_minibatch_without_peaks_says_so():
    with pytest.raises(ValueError, match=r"has to fill Minibatch\.peaks"):
        module().elbo(make_minibatch(n_batches=2))
