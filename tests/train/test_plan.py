import itertools
import json
import math
import re
from dataclasses import FrozenInstanceError, asdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from scvae_ext.train import TrainingPlan

LENGTHS = [1, 7, 1000, 50_000]


@pytest.mark.parametrize("max_steps", LENGTHS)
@pytest.mark.parametrize("kl_warmup", [0.0, 0.3, 1.0])
def test_weight_of_the_divergence_reaches_its_maximum_whatever_the_length(max_steps, kl_warmup):
    plan = TrainingPlan(max_steps, kl_warmup=kl_warmup, max_kl_weight=0.7)
    assert plan.kl_weight_at(max_steps - 1) == pytest.approx(0.7)
    assert plan.kl_weight_at(10 * max_steps) == pytest.approx(0.7)


def test_weight_of_the_divergence_rises_linearly_over_a_fraction_of_the_steps():
    plan = TrainingPlan(1000, kl_warmup=0.5, max_kl_weight=2.0)
    assert plan.kl_weight_at(249) == pytest.approx(1.0)
    weights = [plan.kl_weight_at(step) for step in range(500)]
    steps = [later - earlier for earlier, later in itertools.pairwise(weights)]
    assert steps == pytest.approx([2.0 / 500] * 499)
    assert weights[0] > 0
    assert plan.kl_weight_at(500) == 2.0


@pytest.mark.parametrize("max_steps", LENGTHS)
def test_the_penalty_on_batches_rises_linearly_between_its_two_fractions(max_steps):
    plan = TrainingPlan(max_steps, batch_penalty=10.0, penalty_rise=(0.25, 0.75))
    shares = [plan.penalty_share_at(step) for step in range(max_steps)]
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    if max_steps == 1000:
        assert shares[249] == 0.0
        assert shares[499] == pytest.approx(0.5)
        assert shares[748] < shares[749] == 1.0
    assert TrainingPlan(max_steps, penalty_rise=(0.0, 0.0)).penalty_share_at(0) == 1.0


def test_early_stopping_waits_for_all_weights():
    assert TrainingPlan(1000, kl_warmup=0.3).settled_from == 300
    assert TrainingPlan(1000, kl_warmup=0.3, batch_penalty=1.0, penalty_rise=(0.2, 0.6)).settled_from == 600
    assert TrainingPlan(1000, kl_warmup=0.9, batch_penalty=1.0, penalty_rise=(0.2, 0.6)).settled_from == 900


@pytest.mark.parametrize("rise", [(0.6, 0.2), (-0.1, 0.2), (0.2, 1.1)])
def test_a_rise_lies_within_training(rise):
    with pytest.raises(ValueError, match=r"penalty_rise=.*two fractions of the training"):
        TrainingPlan(10, penalty_rise=rise)


def test_no_warm_up_is_full_weight_from_the_start():
    assert TrainingPlan(100, kl_warmup=0.0).kl_weight_at(0) == 1.0


@pytest.mark.parametrize("lr_warmup", [0.0, 0.1, 0.5])
def test_learning_rate_rises_to_its_peak_and_falls_along_a_cosine(lr_warmup):
    plan = TrainingPlan(1000, learning_rate=0.01, lr_warmup=lr_warmup)
    rates = [plan.learning_rate_at(step) for step in range(1000)]
    peak = int(1000 * lr_warmup)
    assert rates[peak] == max(rates) == pytest.approx(0.01)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    half = peak + (1000 - peak) // 2
    assert rates[half] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi / 2)), rel=0.01)
    assert 0 <= rates[-1] < 1e-5


@pytest.mark.parametrize("max_steps", LENGTHS)
@pytest.mark.parametrize("lr_warmup", [0.0, 0.3, 1.0])
def test_learning_rate_is_never_negative_nor_above_its_peak(max_steps, lr_warmup):
    plan = TrainingPlan(max_steps, learning_rate=0.01, lr_warmup=lr_warmup)
    rates = [plan.learning_rate_at(step) for step in range(0, 2 * max_steps, max(1, max_steps // 50))]
    assert all(0 <= rate <= 0.01 * (1 + 1e-9) for rate in rates)
    assert rates[0] > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in ("max_steps", "batch_size", "n_samples", "patience", "validate_every")
            for value in (0, 1.5, True, math.inf, "1", None)
        ),
        *(("learning_rate", value) for value in (0.0, -1.0, math.nan, math.inf, "0.1", None, True, [0.1])),
        *((name, value) for name in ("lr_warmup", "kl_warmup") for value in (-0.1, 1.1, math.nan)),
        *(
            (name, value)
            for name in ("max_kl_weight", "weight_decay", "free_bits")
            for value in (-0.1, math.inf, math.nan, "0", np.ones(1))
        ),
    ],
)
def test_impossible_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r} must be")):
        TrainingPlan(**({"max_steps": 10} | {name: value}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("of_kind", [np.float32, np.array, torch.tensor, Fraction])
def test_numbers_are_those_of_python(of_kind):
    names = ("learning_rate", "kl_warmup", "max_kl_weight", "weight_decay", "free_bits", "batch_penalty")
    plan = TrainingPlan(np.int64(10), batch_size=np.uint8(4), **{name: of_kind(0.25) for name in names})
    assert plan == TrainingPlan(10, batch_size=4, **dict.fromkeys(names, 0.25))
    json.dumps(asdict(plan))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "vimco"}, 'objective=\'vimco\' is not known: use "elbo" or "iwae"'),
        ({"objective": "iwae"}, 'objective="iwae" with n_samples=1 is the ELBO'),
        ({"objective": "iwae", "n_samples": 2, "free_bits": 0.5}, r"free_bits=0\.5 .*leave it at 0"),
    ],
)
def test_objectives_that_contradict_themselves_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingPlan(10, **options)


def test_a_plan_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainingPlan(10).max_steps = 20
