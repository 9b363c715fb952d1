import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.nn import CovariateColumns


def test_nothing_registered_gives_no_column():
    columns = CovariateColumns(1)
    assert columns.n_columns == 0
    assert columns(make_minibatch(4)).shape == (4, 0)


def test_continuous_then_batch_then_categorical_columns():
    minibatch = make_minibatch(4, n_batches=2, n_categories=(2,), n_continuous=1)
    columns = CovariateColumns(2, (2,), 1)
    expected = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 0, 1]])
    found = columns(minibatch)
    assert columns.n_columns == found.shape[1] == 5
    assert torch.equal(found, torch.cat([minibatch.continuous_covariates, expected], 1))


def test_given_batches_take_the_place_of_the_observed_ones():
    minibatch = make_minibatch(3, n_batches=3)
    found = CovariateColumns(3)(minibatch, torch.tensor([2, 2, 0]))
    assert torch.equal(found, torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 0, 0]]))


def test_embedding_is_one_learned_vector_a_batch():
    columns = CovariateColumns(3, batch_representation="embedding", embedding_dim=2)
    minibatch = make_minibatch(7, n_batches=3)
    found = columns(minibatch)
    assert columns.n_columns == 2
    assert torch.equal(found, columns.embedding.weight[minibatch.batch])
    found.sum().backward()
    assert torch.equal(columns.embedding.weight.grad, torch.tensor([[3.0, 3], [2, 2], [2, 2]]))


def test_a_single_batch_needs_no_embedding():
    columns = CovariateColumns(1, batch_representation="embedding")
    assert columns.n_columns == 0
    assert list(columns.parameters()) == []


def test_covariates_that_were_not_announced_are_refused():
    with pytest.raises(ValueError, match="zip"):
        CovariateColumns(1, ())(make_minibatch(4, n_categories=(2,)))


def test_columns_have_the_precision_of_the_minibatch():
    assert CovariateColumns(2, (3,))(make_minibatch(4, n_batches=2, n_categories=(3,), dtype=torch.float64)).dtype == (
        torch.float64
    )


def test_last_batches_are_those_that_came_last():
    found = CovariateColumns(5).last_batches(torch.tensor([4, 0, 3, 2, 4]), 2)
    assert torch.equal(found, torch.tensor([[0.0, 1], [0, 0], [1, 0], [0, 0], [0, 1]]))
