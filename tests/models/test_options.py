import numpy as np
import pytest

from scvae_ext.models import SCVAE
from scvae_ext.models.options import plan_options, positive_number, reject_unknown, true_or_false, whole_number


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_numpy_become_those_of_python(value):
    number = whole_number("n_latent", value)
    assert number == 3
    assert type(number) is int


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, None, np.bool_(True)])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(ValueError, match=r"n_latent=.* must be a whole number of at least 1"):
        whole_number("n_latent", value)


@pytest.mark.parametrize("value", [1e4, np.float32(1e4), np.int64(10_000), 10_000])
def test_positive_numbers_of_any_kind_are_taken(value):
    number = positive_number("library_size", value)
    assert number == 1e4
    assert type(number) is float


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "1"])
def test_what_is_no_positive_number_is_named(value):
    with pytest.raises(ValueError, match=r"library_size=.* must be a positive number"):
        positive_number("library_size", value)


def test_only_truth_values_are_true_or_false():
    assert true_or_false("early_stopping", np.bool_(False)) is False
    with pytest.raises(ValueError, match="early_stopping='no' must be True or False"):
        true_or_false("early_stopping", "no")


def test_an_unknown_option_brings_the_nearest_and_all_that_exist():
    with pytest.raises(TypeError, match=r"'n_laten'. Did you mean n_latent\? Options are n_hidden, n_latent"):
        reject_unknown(SCVAE, {"n_laten": 3})


def test_plan_options_take_the_names_of_scvi_tools():
    assert plan_options({"lr": 0.01, "weight_decay": 1e-6}) == {"learning_rate": 0.01, "weight_decay": 1e-6}
    with pytest.raises(TypeError, match=r"'n_epochs_kl_warmup'.*kl_warmup"):
        plan_options({"n_epochs_kl_warmup": 10})
