import pytest
import torch
from jaxtyping import TypeCheckError
from minibatches import make_minibatch

from scvae_ext.likelihoods.statistics import log_normalised_matrix
from scvae_ext.nn import Encoder


def test_a_wrong_number_of_axes_is_found():
    encoder = Encoder(3, 4, 2).eval()
    with pytest.raises(TypeCheckError):
        encoder(torch.zeros(3), torch.zeros(1, 0))


def test_axes_of_one_name_must_agree_between_arguments():
    encoder = Encoder(3, 4, 2, n_covariates=1).eval()
    with pytest.raises(TypeCheckError):
        encoder(torch.zeros(5, 3), torch.zeros(4, 1))


def test_integers_are_not_taken_for_measurements():
    with pytest.raises(TypeCheckError):
        Encoder(3, 4, 2).eval()(torch.zeros(5, 3, dtype=torch.int64), torch.zeros(5, 0))


def test_what_fits_passes():
    assert log_normalised_matrix(make_minibatch(4, 6), compositional=True).shape == (4, 6)
