import numpy as np
import pytest
import torch
from minibatches import make_minibatch
from quadrature import one_dimensional_vae
from scipy import special, stats
from torch.distributions import Normal

from scvae_ext.modules import VAE, LabelPrior, LabelWeighted, SampledElbo


@pytest.fixture
def prior():
    prior = LabelPrior(3, 2, n_per_label=2)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0, 0.2]))
        prior.mean.copy_(torch.tensor([[0.0, 0.0], [2.0, -1.0], [-3.0, 3.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 2.0]]))
        prior.log_scale.copy_(torch.linspace(-1, 0.5, 12).view(6, 2))
    return prior


def by_scipy(prior, z):
    """p(y, z) of every label, from the parameters."""
    weights = np.exp(prior.logits.detach().numpy())
    weights /= weights.sum()
    each = [
        weight * stats.multivariate_normal.pdf(z, mean, np.diag(np.exp(2 * scale)))
        for weight, mean, scale in zip(
            weights, prior.mean.detach().numpy(), prior.log_scale.detach().numpy(), strict=True
        )
    ]
    return np.stack(each, axis=-1).reshape(len(z), 3, 2).sum(-1)


@torch.no_grad()
def test_labels_of_a_latent_point_are_by_the_theorem_of_bayes(prior):
    z = torch.randn(50, 2) * 2
    joint = by_scipy(prior, z.numpy())
    expected = np.log(joint / joint.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(prior.label_log_probs(z), expected, rtol=1e-4, atol=1e-4)
    label = torch.arange(50) % 3
    np.testing.assert_allclose(
        prior.log_prob_label(z, label), expected[np.arange(50), label.numpy()], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_cells_without_a_label_have_nothing_to_explain(prior):
    z = torch.randn(4, 10, 2)
    label = torch.tensor([3, 0] * 5)
    values = prior.log_prob_label(z, label)
    assert values.shape == (4, 10)
    assert (values[:, ::2] == 0).all()
    assert (values[:, 1::2] < 0).all()


def test_far_away_points_have_finite_probabilities_and_gradients(prior):
    z = torch.tensor([[1e4, -1e4], [0.0, 1e3]], requires_grad=True)
    prior.log_prob_label(z, torch.tensor([2, 3])).sum().backward()
    assert z.grad.isfinite().all()
    assert (z.grad[1] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in prior.parameters())


@torch.no_grad()
def test_the_start_finds_the_gaussians_from_few_labels():
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    scale = torch.tensor([[0.5, 1.0], [1.0, 0.5], [0.7, 0.7]])
    label = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), 40_000, replacement=True, generator=generator)
    within = 0.3  # of the posterior of each cell
    spread = (scale[label].square() - within**2).sqrt()
    mean = centre[label] + spread * torch.randn(40_000, 2, generator=generator)
    known = torch.full((40_000,), 3)
    for of_label in range(3):
        cells = torch.nonzero(label == of_label)[:5]
        known[cells] = of_label
    prior = LabelPrior(3, 2)
    prior.initialise(mean, torch.full_like(mean, within**2), known)
    torch.testing.assert_close(prior.mean, centre, atol=0.1, rtol=0)
    torch.testing.assert_close(prior.log_scale.exp(), scale, atol=0.06, rtol=0)
    torch.testing.assert_close(prior.logits.softmax(0), torch.tensor([0.7, 0.2, 0.1]), atol=0.02, rtol=0)


@torch.no_grad()
def test_the_start_is_a_maximum_of_what_it_maximises():
    """Shares, centres and variances are those that they say of the cells: one with a label is worth thirty without."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 400, replacement=True, generator=generator)
    scale = torch.tensor([0.4, 1.0, 2.0])[truth].unsqueeze(1)
    mean = 3 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[truth]
    mean = mean + scale * torch.randn(400, 2, generator=generator)
    variance = 0.05 + 0.1 * torch.rand(400, 2, generator=generator)
    label = torch.where(torch.arange(400) < 40, truth, 3)
    prior = LabelPrior(3, 2)
    prior.initialise(mean, variance, label)

    m, v, y = mean.double().numpy(), variance.double().numpy(), label.numpy()
    centres, variances = prior.mean.double().numpy(), np.exp(2 * prior.log_scale.double().numpy())
    deviation = np.square(m[:, None] - centres) + v[:, None]
    # The mean of the log density over each cell's posterior.
    log_joint = prior.logits.double().numpy() - 0.5 * (deviation / variances + np.log(variances)).sum(2)
    log_joint[(y[:, None] < 3) & (y[:, None] != np.arange(3))] = -np.inf
    share = np.exp(log_joint - special.logsumexp(log_joint, axis=1, keepdims=True))
    weights = share.sum(0) + 1
    np.testing.assert_allclose(prior.logits.softmax(0), weights / weights.sum(), rtol=1e-3)
    share *= np.where(y < 3, 30, 1)[:, None]
    total = share.sum(0)[:, None]
    np.testing.assert_allclose(centres, share.T @ m / total, atol=1e-3)
    known = y < 3
    spread = np.mean([(m[i] - m[y == y[i]].mean(0)) ** 2 for i in np.flatnonzero(known)], axis=0) + v.mean(0)
    within = np.einsum("nk,nkd->kd", share, deviation) / total
    np.testing.assert_allclose(variances, (total * within + 2 * spread) / (total + 2), rtol=2e-3)


@torch.no_grad()
def test_the_start_leaves_known_labels_where_they_are():
    # Labels that have nothing to do with where cells lie: only if they were moved could the centres differ.
    generator = torch.Generator().manual_seed(1)
    mean = torch.cat([torch.randn(500, 2, generator=generator), torch.randn(500, 2, generator=generator) + 6])
    label = torch.arange(1000) % 2
    prior = LabelPrior(2, 2)
    prior.initialise(mean, torch.full_like(mean, 1e-4), label)
    for of_label in range(2):
        torch.testing.assert_close(prior.mean[of_label], mean[label == of_label].mean(0), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("n_per_label", [1, 3])
def test_the_start_is_finite_where_a_label_has_no_cell_or_one(n_per_label):
    prior = LabelPrior(3, 2, n_per_label)
    mean = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    label = torch.full((20,), 3)
    for known in ([], [0], [0, 1, 1]):
        label[: len(known)] = torch.tensor(known, dtype=torch.int64)
        prior.initialise(mean, torch.full_like(mean, 0.01), label, torch.Generator().manual_seed(0))
        assert all(parameter.isfinite().all() for parameter in prior.parameters())


@torch.no_grad()
def test_the_evidence_is_that_of_counts_and_labels_by_numerical_integration():
    vae = one_dimensional_vae(n_known_labels=2, n_prior_components=2)
    minibatch = make_minibatch(6, 5, n_labels=3, dtype=torch.float64)  # the third of the labels is none
    points = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    z = points.view(-1, 1, 1).expand(-1, 6, 1)
    likelihood = vae.decode(z, minibatch).log_prob(minibatch.counts.dense()).sum(-1)
    log_joint = vae.prior.logits.log_softmax(0) + Normal(
        vae.prior.mean[:, 0], vae.prior.log_scale[:, 0].exp()
    ).log_prob(z)
    of_labels = log_joint.unflatten(-1, (2, 2)).logsumexp(-1)
    of_cells = torch.where(
        minibatch.label == 2, of_labels.logsumexp(-1), of_labels[:, torch.arange(6), minibatch.label.clamp_max(1)]
    )
    exact = (likelihood + of_cells).logsumexp(0) + (points[1] - points[0]).log()
    weights = vae.log_importance_weights(minibatch, 40_000, torch.Generator().manual_seed(0)).double()
    estimate = weights.logsumexp(0) - np.log(len(weights))
    error = weights.sub(estimate).exp().std(0) / len(weights) ** 0.5
    assert float(((estimate - exact).abs() / error).max()) < 4.5


def test_every_parameter_gets_a_gradient_and_the_label_is_a_term_of_its_own():
    vae = VAE(7, n_hidden=8, n_latent=2, n_labels=4, n_known_labels=3, n_prior_components=1)
    minibatch = make_minibatch(n_labels=4)
    bound = vae.elbo(minibatch)
    bound.score().mean().backward()
    assert all((parameter.grad != 0).any() for parameter in vae.prior.parameters())
    assert all(parameter.grad is not None for parameter in vae.parameters())
    without = vae.eval().elbo(minibatch, generator=torch.Generator().manual_seed(0))
    other = make_minibatch(n_labels=1)
    other.label.fill_(3)
    unlabelled = vae.elbo(other, generator=torch.Generator().manual_seed(0))
    of_labels = without.terms()["reconstruction_labels"]
    assert (of_labels[minibatch.label == 3] == 0).all()
    torch.testing.assert_close(without.score() - of_labels, unlabelled.score())


@torch.no_grad()
def test_the_weight_of_labels_is_in_the_objective_and_not_in_the_elbo():
    vae = VAE(7, n_hidden=8, n_latent=2, n_labels=4, n_known_labels=3, n_prior_components=1).eval()
    minibatch = make_minibatch(n_labels=4, n_batches=2)
    trainable = SampledElbo(vae, 1, 0.0, batch_penalty=5.0, label_weight=20.0)
    assert trainable.monitor == "label_weighted_elbo"
    objective = trainable.objective(minibatch, torch.Generator().manual_seed(0))
    assert isinstance(objective, LabelWeighted)
    terms = objective.terms()
    plain = vae.elbo(minibatch, 1, torch.Generator().manual_seed(0))
    of_labels = plain.terms()["reconstruction_labels"][0]
    torch.testing.assert_close(terms["elbo"], plain.score()[0])
    expected = terms["elbo"] + 19 * of_labels - 5 * terms["batch_dependence"]
    torch.testing.assert_close(terms["label_weighted_elbo"], expected)
    torch.testing.assert_close(objective.score(), expected)
    torch.testing.assert_close(objective.score(0.0, 0.0), plain.reconstruction[0] + 19 * of_labels)
