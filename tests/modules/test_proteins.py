from dataclasses import replace

import pytest
import torch
from minibatches import make_minibatch
from quadrature import nodes, one_dimensional_vae

from scvae_ext.modules import VAE, HandDerivedElbo, log_importance_weights, trainable_bound
from scvae_ext.modules import elbo as elbo_of
from scvae_ext.modules.elbo import log_likelihood

MEASURED = ((True, True, True), (True, False, True))


def cells(n_cells=12, dtype=torch.float32, **options):
    minibatch = make_minibatch(n_cells, n_batches=2, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(3)
    proteins = torch.poisson(torch.full((n_cells, 3), 6.0, dtype=dtype), generator=generator)
    return replace(minibatch, proteins=proteins)


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = VAE(7, n_batches=2, n_hidden=8, n_latent=3, proteins_measured=MEASURED)
    minibatch = cells()
    vae.proteins.initialise(minibatch.proteins, minibatch.batch)
    return vae.eval()


def test_what_was_not_measured_changes_nothing(vae):
    minibatch = cells()
    other = minibatch.proteins.clone()
    other[1::2, 1] = 500
    changed = replace(minibatch, proteins=other)
    torch.testing.assert_close(vae.encode(changed).qz.loc, vae.encode(minibatch).qz.loc, rtol=0, atol=0)
    values = [vae.elbo(each, 5, torch.Generator().manual_seed(0)).score() for each in (minibatch, changed)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    other[0, 1] = 500
    changed = replace(minibatch, proteins=other)
    assert vae.elbo(changed, 5, torch.Generator().manual_seed(0)).score()[:, 0].lt(values[0][:, 0]).all()


def test_the_encoder_sees_standardised_logs_and_zero_for_what_is_missing(vae):
    columns = vae.proteins.encoder_columns(cells())
    seen = torch.tensor(MEASURED)[cells().batch]
    assert (columns[~seen] == 0).all()
    for protein in range(3):
        values = columns[seen[:, protein], protein]
        torch.testing.assert_close(values.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(correction=0), torch.tensor(1.0))


def test_the_reconstruction_is_the_sum_over_genes_and_measured_proteins(vae):
    minibatch = cells()
    output = vae(minibatch, 4, torch.Generator().manual_seed(1))
    hidden = vae.decode_hidden(output.latent, minibatch)
    each = vae.proteins.decode(hidden, minibatch.batch).log_prob(minibatch.proteins)
    of_proteins = (each * torch.tensor(MEASURED)[minibatch.batch]).sum(-1)
    of_genes = vae.likelihood.reconstruction(output.px, minibatch)
    terms = vae.elbo(minibatch, 4, torch.Generator().manual_seed(1)).terms()
    torch.testing.assert_close(terms["reconstruction_proteins"], of_proteins)
    torch.testing.assert_close(terms["reconstruction"], of_genes + of_proteins)


def test_evidence_is_the_same_under_every_posterior():
    """Of one latent dimension: log p(genes, proteins) by quadrature over the prior, and over a posterior with weights.

    The mean log weight under that posterior, the ELBO, is below it.
    """
    torch.manual_seed(0)
    vae = one_dimensional_vae(n_genes=7, log_variance=0.3, n_batches=2, proteins_measured=MEASURED)
    minibatch = cells(4, torch.float64)
    points, log_weights = (values.view(-1, 1) for values in nodes(150))
    with torch.no_grad():
        vae.encoder.mean.weight.mul_(0.1)
        vae.encoder.log_variance.weight.zero_()
        posterior = vae.encode(minibatch)
        under_prior = vae.output_at(posterior, points.unsqueeze(-1).expand(-1, 4, 1), None, minibatch)
        exact = log_likelihood(under_prior, vae.likelihood, minibatch) + log_weights
        samples = posterior.qz.loc + posterior.qz.scale * points.unsqueeze(-1)
        output = vae.output_at(posterior, samples, None, minibatch)
        log_w = log_importance_weights(output, vae.likelihood, minibatch)
        elbo = (elbo_of(output, vae.likelihood, minibatch).score() * log_weights.exp()).sum(0)
    torch.testing.assert_close((log_w + log_weights).logsumexp(0), exact.logsumexp(0), atol=1e-3, rtol=0)
    torch.testing.assert_close((log_w * log_weights.exp()).sum(0), elbo, atol=1e-3, rtol=0)
    assert (elbo < exact.logsumexp(0)).all()


def test_every_parameter_is_trained_by_every_bound(vae):
    minibatch = cells()
    vae.train()
    for objective, n_samples in (("elbo", 1), ("elbo", 3), ("iwae", 3)):
        vae.zero_grad()
        bound = trainable_bound(vae, objective, n_samples, 0.0)
        scored = bound.objective(minibatch)
        assert "reconstruction_proteins" in scored.terms()
        (scored.score().mean() + vae.log_prior() / 100).backward()
        without = [name for name, parameter in vae.named_parameters() if parameter.grad is None]
        assert not without, (objective, n_samples, without)


def test_gradients_by_hand_leave_it_to_the_graph(vae):
    assert HandDerivedElbo.of(vae) is None


def test_a_minibatch_without_proteins_is_refused(vae):
    with pytest.raises(ValueError, match="has no counts of proteins"):
        vae.encode(make_minibatch(n_batches=2))
