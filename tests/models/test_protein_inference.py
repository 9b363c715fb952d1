"""Expected counts of proteins by Bayes' rule, and the batches that they are decoded with."""

import numpy as np
import pytest
import torch
from torch.distributions import NegativeBinomial

from scvae_ext.models.cells import evaluating
from scvae_ext.models.protein_inference import (
    _drawn_batches,
    foreground_probability,
    protein_expression,
    protein_samples,
    weighted_batches,
)


def _by_hand(model, batch, *, include_background, given_counts):
    """Expected counts, and probability of the foreground, of all cells at the mean of their posterior in a batch."""
    minibatch = model._own_source().minibatch(np.arange(120))
    batch = torch.full_like(minibatch.batch, batch)
    with evaluating(model.module):
        hidden = model.module.decode_hidden(model.module.encode(minibatch).qz.loc, minibatch, batch)
        px = model.module.proteins.decode(hidden, batch)
    share = torch.sigmoid(px.first_logits.double())
    counts, rates, likelihoods = minibatch.proteins.double(), [], []
    for part in (px.first, px.second):
        mean, theta = part.mean.double(), part.inverse_dispersion.double()
        likelihoods.append(NegativeBinomial(theta, probs=mean / (mean + theta)).log_prob(counts).exp())
        # The rate of a negative binomial is a gamma variable, and so it is given the count.
        rates.append((theta + counts) / (theta / mean + 1) if given_counts else mean)
    if given_counts:
        share = share * likelihoods[0] / (share * likelihoods[0] + (1 - share) * likelihoods[1])
    expected = (1 - share) * rates[1] + (share * rates[0] if include_background else 0)
    return expected.numpy(), (1 - share).numpy()


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("given_counts", [False, True])
def test_expected_counts_are_those_of_bayes(cite, include_background, given_counts):
    _, cells = cite._cells(None, None, 50, False)
    options = {"include_background": include_background, "given_counts": given_counts}
    with evaluating(cite.module):
        found = protein_expression(cite.module, cells, [], 1, 0, **options)
        probability = foreground_probability(cite.module, cells, [], 1, 0, given_counts=given_counts)
    of_batch = cite.adata.obs["batch"].cat.codes.to_numpy()
    (first, of_first), (second, of_second) = (_by_hand(cite, batch, **options) for batch in (0, 1))
    expected = np.where(of_batch[:, None] == 0, first, second)
    foreground = np.where(of_batch[:, None] == 0, of_first, of_second)
    # What was not measured in the second batch is known of the state alone, as the first batch has it.
    bare, of_bare = _by_hand(cite, 0, include_background=include_background, given_counts=False)
    expected[of_batch == 1, 1], foreground[of_batch == 1, 1] = bare[of_batch == 1, 1], of_bare[of_batch == 1, 1]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(probability, foreground, rtol=2e-3, atol=1e-4)


def test_batches_weigh_the_same_among_those_in_which_a_protein_was_measured(cite):
    minibatch = cite._own_source().minibatch(np.arange(3))
    measured = torch.tensor([[True, False, True], [True, True, False], [True, False, True]])

    def weights(batches, batch=(0, 1, 2)):
        given = minibatch.__class__(**{**vars(minibatch), "batch": torch.tensor(batch)})
        found = torch.zeros(3, 3, 3)
        for code, weight in weighted_batches(measured, given, batches):
            found[:, int(code[0])] += weight
        return found

    # Of all cells alike: those that are asked for, and all that have a protein where none of them does.
    expected = torch.tensor([[1 / 2, 0, 1], [1 / 2, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(weights([0, 1]), expected.expand(3, 3, 3))
    expected = torch.tensor([[1 / 2, 0, 1 / 2], [0, 1, 0], [1 / 2, 0, 1 / 2]])
    torch.testing.assert_close(weights([0, 2]), expected.expand(3, 3, 3))
    own = weights([])
    torch.testing.assert_close(own[0], torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0]]))
    torch.testing.assert_close(own[1], torch.tensor([[0, 0, 1 / 2], [1, 1, 0], [0, 0, 1 / 2]]))


def test_a_protein_is_drawn_in_the_cells_own_batch_or_in_any_that_has_it():
    measured = torch.tensor([[True, False, False], [True, True, True], [False, True, True]])
    chosen = _drawn_batches(measured, torch.arange(3).repeat(1000)).view(1000, 3, 3)
    assert (chosen[:, 0, 0] == 0).all()
    assert (chosen[:, 1] == 1).all()
    assert (chosen[:, 2, 1:] == 2).all()
    assert set(chosen[:, 0, 1].tolist()) == {1, 2}
    assert (chosen[:, 2, 0] < 2).all()
    # One or the other by chance, and the same for both proteins that were measured in the same batches.
    assert torch.equal(chosen[:, 0, 1], chosen[:, 0, 2])
    assert abs(float((chosen[:, 0, 1] == 1).float().mean()) - 0.5) < 4.5 * 0.5 / 1000**0.5


def test_states_of_samples_are_drawn_from_the_posterior(cite, monkeypatch):
    module, given = cite.module, []
    decode = module.decode_hidden
    monkeypatch.setattr(module, "decode_hidden", lambda *arguments: (given.append(arguments[0]), decode(*arguments))[1])
    cell = int(np.flatnonzero(cite.adata.obs["batch"] == "batch_0")[0])
    _, cells = cite._cells(None, [cell], None, False)
    with evaluating(module):
        protein_samples(module, cells, 800, 0)
        qz = module.encode(cells.source.minibatch(np.array([cell]))).qz
    z = (torch.cat(given) - qz.loc) / qz.scale
    assert len(z) == 800
    assert float(z.mean(0).abs().max()) < 4.5 / 800**0.5
    assert float((z.std(0) - 1).abs().max()) < 4.5 / 1600**0.5
