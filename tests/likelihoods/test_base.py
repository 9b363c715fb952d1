"""What every likelihood owes to the VAE, whichever distribution it is."""

import pytest
import torch
from minibatches import make_minibatch
from torch.distributions import Distribution

from scvae_ext.likelihoods import depth, gene_statistics, make_likelihood

LIKELIHOODS = [
    *((name, kind) for name in ("nb", "zinb", "normal") for kind in ("gene", "gene-batch", "gene-label", "gene-cell")),
    ("poisson", "gene"),
]
every_likelihood = pytest.mark.parametrize(("name", "dispersion"), LIKELIHOODS)


def _build(name, dispersion, **options):
    likelihood = make_likelihood(name, 3, 7, dispersion=dispersion, n_batches=2, n_labels=3, **options)
    return likelihood, make_minibatch(n_batches=2, n_labels=3)


def _decode(likelihood, minibatch, hidden):
    return likelihood(hidden, depth(minibatch), minibatch.batch, minibatch.label)


@every_likelihood
def test_returns_a_distribution_of_cells_and_genes(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    px = _decode(likelihood, minibatch, torch.randn(12, 3))
    assert isinstance(px, Distribution)
    assert px.batch_shape == (12, 7)
    assert likelihood.reconstruction(px, minibatch).shape == (12,)


@every_likelihood
def test_every_parameter_receives_a_gradient(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    px = _decode(likelihood, minibatch, torch.randn(12, 3))
    likelihood.reconstruction(px, minibatch).sum().backward()
    for parameter, value in likelihood.named_parameters():
        assert value.grad is not None, parameter
        assert bool(value.grad.isfinite().all()), parameter
        assert bool(value.grad.flatten(0, -2).any(-1).all() if value.dim() > 1 else value.grad.any()), parameter


@every_likelihood
def test_axes_of_samples_give_the_same_as_one_call_a_sample(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    hidden = torch.randn(4, 12, 3)
    together = likelihood.reconstruction(_decode(likelihood, minibatch, hidden), minibatch)
    apart = [likelihood.reconstruction(_decode(likelihood, minibatch, each), minibatch) for each in hidden]
    torch.testing.assert_close(together, torch.stack(apart))


@every_likelihood
def test_reconstruction_is_the_log_probability_summed_over_genes(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    px = _decode(likelihood, minibatch, torch.randn(12, 3))
    value = minibatch.counts.dense()
    if name == "normal":
        value = torch.log1p(1e4 * value / value.sum(1, keepdim=True))
    torch.testing.assert_close(likelihood.reconstruction(px, minibatch), px.log_prob(value).sum(-1))


@every_likelihood
def test_expression_sums_to_one_where_depth_is_the_library_size(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    likelihood.initialise(gene_statistics([minibatch]))
    expression = likelihood.expression(torch.randn(12, 3))
    torch.testing.assert_close(expression.sum(-1), torch.ones(12))


@every_likelihood
def test_expression_is_free_with_size_factors(name, dispersion):
    likelihood, _ = _build(name, dispersion, compositional=False)
    expression = likelihood.expression(torch.randn(12, 3))
    assert bool((expression >= 0).all())
    assert float(expression.detach().sum(-1).std()) > 1e-3


@every_likelihood
def test_named_parameters_are_finite_and_broadcast_to_cells_and_genes(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    named = likelihood.parameters_by_name(_decode(likelihood, minibatch, torch.randn(12, 3)))
    expected = {
        "nb": {"mean", "dispersions"},
        "zinb": {"mean", "dispersions", "dropout"},
        "poisson": {"mean"},
        "normal": {"mean", "scale"},
    }
    assert set(named) == expected[name]
    for value in named.values():
        assert value.expand(12, 7).isfinite().all()


@every_likelihood
def test_starting_from_the_data_beats_starting_at_random(name, dispersion):
    likelihood, minibatch = _build(name, dispersion)
    hidden = 0.1 * torch.randn(12, 3)
    before = likelihood.reconstruction(_decode(likelihood, minibatch, hidden), minibatch).detach()
    likelihood.initialise(gene_statistics([minibatch]))
    after = likelihood.reconstruction(_decode(likelihood, minibatch, hidden), minibatch).detach()
    assert float(after.mean()) > float(before.mean())
