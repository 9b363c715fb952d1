from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from scvae_ext.modules import VAE, BatchPenalised, HandDerivedElbo, SampledElbo
from scvae_ext.nn import Dispersion, SparseLinear
from scvae_ext.train import TrainingPlan, lightning_module
from scvae_ext.train.fit import fit
from scvae_ext.train.history import History
from scvae_ext.train.lightning_module import TrainingModule
from scvae_ext.train.optimizer import LeanAdamW

QUIET = {"progress_bar": False}


def _training(module, **plan):
    return TrainingModule(module, TrainingPlan(**({"max_steps": 10} | plan)), History(), n_train=160, seed=0)


def test_every_parameter_is_optimised_once():
    module = VAE(20, n_batches=2, n_hidden=16, dispersion="gene-batch", batch_representation="embedding")
    optimizer = _training(module).configure_optimizers()
    optimised = [id(value) for group in optimizer.param_groups for value in group["params"]]
    assert sorted(optimised) == sorted(id(value) for value in module.parameters())


def test_only_linear_maps_decay():
    module = VAE(20, n_batches=2, n_hidden=16, dispersion="gene-cell", batch_representation="embedding")
    optimizer = _training(module, weight_decay=0.3).configure_optimizers()
    decayed = {
        id(value) for group in optimizer.param_groups if group["weight_decay"] == 0.3 for value in group["params"]
    }
    linear = [layer for layer in module.modules() if isinstance(layer, (torch.nn.Linear, SparseLinear))]
    assert decayed == {id(layer.weight) for layer in linear}
    kept = [group["weight_decay"] for group in optimizer.param_groups if id(group["params"][0]) not in decayed]
    assert set(kept) == {0.0}


def test_dispersions_have_a_learning_rate_of_their_own():
    module = VAE(20, n_hidden=16)
    optimizer = _training(module, dispersion_lr_scale=3.0).configure_optimizers()
    dispersion = next(part for part in module.modules() if isinstance(part, Dispersion)).log_value
    scales = {id(value): group["lr_scale"] for group in optimizer.param_groups for value in group["params"]}
    assert scales.pop(id(dispersion)) == 3.0
    assert set(scales.values()) == {1.0}


def test_a_block_makes_one_update_for_each_minibatch(source, split, vae):
    history = History()
    counted = []
    objective = vae.objective
    vae.objective = lambda minibatch, generator=None: (
        (counted.append(minibatch.n_cells) if vae.training else None) or objective(minibatch, generator)
    )
    plan = TrainingPlan(13, batch_size=32, validate_every=5)
    fit(vae, source, *split, plan, seed=0, history=history, **QUIET)
    assert counted == [32] * 13
    assert history.last("step") == 13


def test_held_out_terms_are_those_of_the_final_weights_with_the_divergence_in_full(source, split, vae):
    history = History()
    plan = TrainingPlan(10, batch_size=32, kl_warmup=1.0, max_kl_weight=0.2, validate_every=10, early_stopping=False)
    fit(vae, source, *split, plan, seed=5, history=history, **QUIET)
    row = history.rows[-1]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        terms = vae.objective(source.minibatch(split[1]), generator).terms()
    assert row["elbo_validation"] == pytest.approx(float(terms["elbo"].mean()), rel=1e-5)
    assert row["elbo_validation"] == pytest.approx(row["reconstruction_validation"] - row["kl_validation"])
    assert row["kl_weight"] == pytest.approx(0.2)


def test_training_terms_are_means_over_the_cells_since_the_last_row(source, split, vae):
    seen = []
    objective = vae.objective

    def remember(minibatch, generator=None):
        found = objective(minibatch, generator)
        if vae.training:
            seen.append(found.terms()["elbo"].detach())
        return found

    vae.objective = remember
    history = History()
    plan = TrainingPlan(20, batch_size=60, validate_every=4, early_stopping=False)
    fit(vae, source, *split, plan, seed=0, history=history, **QUIET)
    steps = [0, *(int(row["step"]) for row in history.rows)]
    for first, last, row in zip(steps, steps[1:], history.rows, strict=False):
        assert row["elbo_train"] == pytest.approx(float(torch.cat(seen[first:last]).mean()), rel=1e-5)


def test_learning_rate_follows_the_plan(source, split, vae):
    rates = []
    step = LeanAdamW.step

    class Recorded(LeanAdamW):
        def step(self, closure=None):
            rates.append({group["lr"] / group["lr_scale"] for group in self.param_groups})
            return step(self, closure)

    plan = TrainingPlan(12, batch_size=40, learning_rate=0.01, lr_warmup=0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_module, "LeanAdamW", Recorded)
        fit(vae, source, *split, plan, seed=0, history=History(), **QUIET)
    np.testing.assert_allclose([rate.pop() for rate in rates], [plan.learning_rate_at(i) for i in range(12)])


class _Waits(TorchDispatchMode):
    """Counts operations whose result, or its shape, the host has to wait for."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal.default")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in self.NAMES):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson", "normal"])
def test_a_block_waits_for_its_results_once(source, split, gene_likelihood):
    # With one batch: torch's one_hot looks at its argument on a CPU, and there alone.
    module = VAE(20, n_hidden=16, n_latent=3, gene_likelihood=gene_likelihood)
    waits, step = [], TrainingModule.training_step

    def counted(self, block, batch_index):
        with _Waits() as mode:
            step(self, block, batch_index)
        waits.append((len(block), mode.found))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", counted)
        fit(module, source, *split, TrainingPlan(10, batch_size=32), seed=0, history=History(), **QUIET)
    assert [n_minibatches for n_minibatches, _ in waits] == [5, 5]
    assert [found for _, found in waits] == [["aten._local_scalar_dense.default"]] * 2


class _Listener(Callback):
    def __init__(self):
        self.n = 0

    def on_after_backward(self, trainer, module):
        self.n += 1


@pytest.mark.parametrize(
    ("options", "callbacks", "is_by_hand"),
    [
        ({}, [], True),
        ({}, [Callback()], True),
        ({"precision": "bf16-mixed"}, [], False),
        ({"detect_anomaly": True}, [], False),
        ({}, [_Listener()], False),
    ],
    ids=["nothing else", "a callback that does not listen", "mixed precision", "anomalies", "a callback that listens"],
)
def test_gradients_are_hand_derived_where_nobody_asks_for_more(
    source, split, vae, monkeypatch, options, callbacks, is_by_hand
):
    counted = []
    backward = HandDerivedElbo.backward

    def counting(self, minibatch, *arguments):
        counted.append(minibatch.n_cells)
        return backward(self, minibatch, *arguments)

    monkeypatch.setattr(HandDerivedElbo, "backward", counting)
    plan = TrainingPlan(7, batch_size=32, validate_every=5)
    fit(vae, source, *split, plan, seed=0, history=History(), callbacks=callbacks, trainer_options=options, **QUIET)
    assert counted == ([32] * 7 if is_by_hand else [])
    assert [callback.n for callback in callbacks if isinstance(callback, _Listener)] in ([], [7])


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_training_by_hand_goes_the_way_of_training_by_graph(source, split, likelihood):
    def history(listeners):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            vae = VAE(20, n_batches=2, n_hidden=16, n_latent=3, gene_likelihood=likelihood)
        rows, plan = History(), TrainingPlan(30, batch_size=32, validate_every=5)
        fit(vae, source, *split, plan, seed=0, history=rows, callbacks=listeners, **QUIET)
        return rows.to_frame().drop(columns="seconds")

    by_hand, by_graph = history([]), history([_Listener()])
    # Rounding is all that differs; Adam divides by gradients, and makes more of it from step to step.
    np.testing.assert_allclose(by_hand, by_graph, rtol=1e-4)
    # What is compared moves by far more than that.
    assert all(abs(later / earlier - 1) > 1e-3 for earlier, later in pairwise(by_hand["elbo_train"]))


@pytest.mark.usefixtures("unchecked")
def test_priors_on_parameters_are_of_all_training_cells_together(source, vae, monkeypatch):
    """In each minibatch they count as one training cell's share of them does."""
    with torch.no_grad():
        # From equal ones their prior has no slope.
        vae.likelihood.dispersion.log_value.normal_()
    view = SampledElbo(vae.eval(), 2, 0.0, batch_penalty=7.0)
    training = _training(view)
    monkeypatch.setattr(training, "manual_backward", lambda loss: loss.backward())
    optimizer = torch.optim.SGD(view.parameters(), 0.1)
    minibatch = source.minibatch(np.arange(40))
    torch.manual_seed(2)
    training._backward(minibatch, 0.5, 0.3, optimizer)
    found = [value.grad.clone() for value in view.parameters()]
    optimizer.zero_grad()
    torch.manual_seed(2)
    (-view.objective(minibatch).score(0.5, 0.3).mean() - view.log_prior() / 160).backward()
    for gradient, value in zip(found, view.parameters(), strict=True):
        torch.testing.assert_close(gradient, value.grad)


def test_weights_of_the_objective_follow_the_plan_and_are_recorded(source, split, vae):
    weights = []
    score = BatchPenalised.score

    def remember(self, kl_weight=1.0, penalty_share=1.0):
        weights.append((kl_weight, penalty_share))
        return score(self, kl_weight, penalty_share)

    plan = TrainingPlan(12, batch_size=80, kl_warmup=0.8, n_samples=2, batch_penalty=5.0, validate_every=4)
    history = History()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchPenalised, "score", remember)
        fit(SampledElbo(vae, 2, 0.0, 5.0), source, *split, plan, seed=0, history=history, **QUIET)
    expected = [(plan.kl_weight_at(step), plan.penalty_share_at(step)) for step in range(12)]
    assert weights == expected
    assert len({share for _, share in expected}) > 4
    steps = [int(row["step"]) for row in history.rows]
    assert steps[0] < 8
    assert [row["kl_weight"] for row in history.rows] == [plan.kl_weight_at(step - 1) for step in steps]
    assert [row["learning_rate"] for row in history.rows] == [plan.learning_rate_at(step - 1) for step in steps]
