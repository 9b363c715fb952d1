from dataclasses import dataclass

import numpy as np
import pytest
import torch
import typecheck
from jaxtyping import Float, TypeCheckError, jaxtyped
from minibatches import make_minibatch
from torch import Tensor

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


def remembered(fn):
    return typecheck.remembering(jaxtyped)(typechecker=typecheck.check)(fn)


def test_calls_of_a_new_kind_are_checked_after_ones_that_were_right():
    calls = []

    @remembered
    def add(one: Float[Tensor, "cells genes"], two: Float[Tensor, "cells genes"], factor: float = 1) -> Tensor:
        calls.append(factor)
        return one + factor * two

    zeros = torch.zeros(2, 3)
    for _ in range(3):
        add(zeros, zeros)
    add(zeros, zeros, factor=2.0)
    assert calls == [1, 1, 1, 2.0]
    for wrong in ((zeros, torch.zeros(1, 3)), (zeros, zeros.int()), (zeros[0], zeros[0]), (zeros, zeros, "2")):
        with pytest.raises(TypeCheckError):
            add(*wrong)
    with pytest.raises(TypeError, match="missing"):
        add(zeros)
    assert len(calls) == 4


def test_results_of_a_new_kind_are_checked_after_arguments_that_were_right():
    results = iter([torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(2, 1), torch.zeros(2)])

    @remembered
    def norm(x: Float[Tensor, "cells genes"]) -> Float[Tensor, "cells"]:
        return next(results)

    x = torch.zeros(2, 3)
    norm(x)
    norm(x)
    for _ in range(2):
        with pytest.raises(TypeCheckError):
            norm(x)
    norm(x)


def test_fields_of_a_dataclass_are_checked_every_time():
    @remembered
    @dataclass(frozen=True)
    class Pair:
        one: Float[np.ndarray, "cells"]
        two: Float[np.ndarray, "cells"]

    Pair(np.zeros(3), np.zeros(3))
    Pair(np.ones(3), np.ones(3))
    with pytest.raises(TypeCheckError):
        Pair(np.zeros(3), np.zeros(2))


def test_contents_of_containers_count():
    @remembered
    def first(values: list[int], names: dict[str, int]) -> int:
        return values[0]

    assert first([1], {"a": 1}) == 1
    for wrong in (([1.0], {"a": 1}), ([1], {"a": 1.0}), ((1,), {"a": 1})):
        with pytest.raises(TypeCheckError):
            first(*wrong)
    with pytest.raises(TypeCheckError):
        first(["a"] * 40, {})
