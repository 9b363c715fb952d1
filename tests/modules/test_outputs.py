import pytest
import torch

from scvae_ext.modules import Elbo, SquaredError

RECONSTRUCTION, KL, KL_LIBRARY = torch.tensor([-10.0, -20.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])


@pytest.mark.parametrize(
    ("kl_weight", "expected"), [(0.0, [-10.0, -20.0]), (0.5, [-10.5, -21.0]), (1.0, [-11.0, -22.0])]
)
def test_score_weighs_the_divergence(kl_weight, expected):
    assert Elbo(RECONSTRUCTION, KL).score(kl_weight).tolist() == expected


def test_terms_are_never_weighted():
    terms = Elbo(RECONSTRUCTION, KL, KL_LIBRARY).terms()
    assert {name: value.tolist() for name, value in terms.items()} == {
        "elbo": [-11.5, -22.25],
        "reconstruction": [-10.0, -20.0],
        "kl": [1.0, 2.0],
        "kl_library": [0.5, 0.25],
    }


def test_an_observed_library_size_has_no_divergence():
    assert set(Elbo(RECONSTRUCTION, KL).terms()) == {"elbo", "reconstruction", "kl"}


def test_axes_of_samples_are_kept():
    assert Elbo(RECONSTRUCTION.expand(4, 2), KL).score().shape == (4, 2)


def test_squared_error_is_better_when_lower():
    error = SquaredError(torch.tensor([1.0, 3.0]))
    assert error.score(0.1).tolist() == [-1.0, -3.0]
    assert error.terms()["mse"].tolist() == [1.0, 3.0]


def test_the_divergence_of_the_library_size_is_never_weighted():
    assert Elbo(RECONSTRUCTION, KL, KL_LIBRARY).score(0.5).tolist() == [-11.0, -21.25]
    assert Elbo(RECONSTRUCTION, KL, KL_LIBRARY).score(0.0).tolist() == [-10.5, -20.25]
