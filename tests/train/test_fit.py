import importlib
import logging
import os
import random
import signal
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from linear_gaussian import LinearGaussian, best_log_likelihood, simulate
from torch import nn

from scvae_ext.data import align, read_registry, setup_anndata
from scvae_ext.modules import VAE, DeterministicAutoencoder, Elbo
from scvae_ext.train import TrainingDivergedError, TrainingPlan
from scvae_ext.train.fit import check_trainer_options, fit
from scvae_ext.train.history import History


def _fit(module, source, split, *, seed=0, history=None, callbacks=(), options=None, **plan):
    plan = TrainingPlan(**({"max_steps": 20, "batch_size": 32, "validate_every": 5} | plan))
    history = History() if history is None else history
    interrupted = fit(
        module,
        source,
        *split,
        plan,
        seed=seed,
        history=history,
        callbacks=callbacks,
        progress_bar=False,
        trainer_options=options,
    )
    return interrupted, history


def _weights(module):
    return torch.cat([value.detach().flatten() for value in module.state_dict().values()]).clone()


def _new():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return VAE(20, n_batches=2, n_hidden=16, n_latent=3)


@pytest.mark.slow
def test_training_reaches_the_maximum_likelihood_of_probabilistic_pca():
    x = simulate(400, 6, 2).astype(np.float32)
    adata = AnnData(x)
    adata.obs_names = adata.obs_names.astype(str)
    setup_anndata(adata)
    source = align(adata, read_registry(adata))
    model = LinearGaussian(6, 2)
    with torch.no_grad():
        model.likelihood.linear.bias.copy_(torch.from_numpy(x.mean(0)))
        model.encoder.bias.copy_(-model.encoder.weight @ torch.from_numpy(x.mean(0)))
    everything = np.arange(400), np.arange(0)
    _fit(model, source, everything, max_steps=1500, batch_size=100, learning_rate=0.03, kl_warmup=0.0, weight_decay=0.0)
    with torch.no_grad():
        minibatch = source.minibatch(np.arange(400))
        reached = np.mean([float(model.objective(minibatch).score().mean()) for _ in range(200)])
    assert reached == pytest.approx(best_log_likelihood(x.astype(np.float64), 2), abs=0.05)


def test_training_improves_the_held_out_elbo(source, split, vae):
    _, history = _fit(vae, source, split, max_steps=150, validate_every=10)
    scores = history.to_frame()["elbo_validation"]
    assert scores.iloc[-1] > scores.iloc[0] + 5


def test_same_seed_gives_the_same_weights_bit_for_bit(source, split):
    one, two, other = _new(), _new(), _new()
    _fit(one, source, split, seed=3)
    torch.randn(5)
    _fit(two, source, split, seed=3)
    _fit(other, source, split, seed=4)
    assert torch.equal(_weights(one), _weights(two))
    assert not torch.equal(_weights(one), _weights(other))


# The type checker itself draws from the generator of Python.
@pytest.mark.usefixtures("unchecked")
def test_no_global_state_is_changed(source, split, vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "scvae_ext", None]

    def state():
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(np.random.get_state()),
            "python": random.getstate(),
            "filters": list(warnings.filters),
            "levels": [logging.getLogger(name).level for name in names],
            "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "dtype": torch.get_default_dtype(),
            "grad": torch.is_grad_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            "matmul": torch.get_float32_matmul_precision(),
            "anomaly": torch.is_anomaly_enabled(),
            "threads": torch.get_num_threads(),
            "environment": dict(os.environ),
            "files": sorted(tmp_path.rglob("*")),
        }

    before = state()
    _fit(vae, source, split, options={"deterministic": "warn", "benchmark": True})
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.mark.parametrize("batch_size", [16, 53, 80, 159, 160, 1000])
def test_any_size_of_minibatch_trains_for_the_planned_steps(source, split, vae, batch_size):
    _, history = _fit(vae, source, split, batch_size=batch_size, early_stopping=False)
    assert history.last("step") == 20
    assert history.rows[-1]["kl_weight"] == 1.0


@pytest.mark.parametrize("n_train", [2, 3, 33, 65])
def test_any_number_of_cells_trains(source, vae, n_train):
    _fit(vae, source, (np.arange(n_train), np.arange(100, 110)), early_stopping=False)
    assert bool(_weights(vae).isfinite().all())


def test_nothing_held_out_still_records_and_keeps_the_last_weights(source, vae):
    _, history = _fit(vae, source, (np.arange(200), np.arange(0)))
    frame = history.to_frame()
    assert frame["step"].iloc[-1] == 20
    assert not any(name.endswith("_validation") for name in frame.columns)
    assert {"elbo_train", "reconstruction_train", "kl_train"} <= set(frame.columns)


@pytest.mark.parametrize("max_steps", [1, 3, 7, 12])
def test_training_shorter_than_the_rhythm_of_validation_is_validated_at_its_end(source, split, vae, max_steps):
    _, history = _fit(vae, source, split, max_steps=max_steps, validate_every=1000, early_stopping=False)
    assert history.to_frame()["step"].tolist()[-1] == max_steps
    assert np.isfinite(history.rows[-1]["elbo_validation"])


@pytest.mark.parametrize("max_steps", [23, 31])
def test_the_end_is_always_validated(source, split, vae, max_steps):
    _, history = _fit(vae, source, split, max_steps=max_steps, early_stopping=False)
    assert history.last("step") == max_steps
    assert history.rows[-1]["kl_weight"] == 1.0
    assert history.to_frame()["step"].is_unique


def test_the_table_is_tidy(source, split, vae):
    _, history = _fit(vae, source, split)
    terms = [f"{term}_{part}" for part in ("train", "validation") for term in ("elbo", "reconstruction", "kl")]
    frame = history.to_frame()
    assert list(frame.columns) == ["step", "epoch", *terms, "kl_weight", "learning_rate", "seconds"]
    assert frame.notna().all(axis=None)
    assert frame["step"].is_monotonic_increasing
    assert frame["epoch"].is_monotonic_increasing
    assert frame["seconds"].is_monotonic_increasing


def test_training_goes_on_where_it_stopped(source, split, vae):
    _, history = _fit(vae, source, split, early_stopping=False)
    first = history.to_frame()
    after_first = _weights(vae)
    started = []

    class Start(Callback):
        def on_train_start(self, trainer, pl_module):
            started.append(_weights(vae))

    _fit(vae, source, split, history=history, callbacks=[Start()], early_stopping=False)
    frame = history.to_frame()
    assert torch.equal(started[0], after_first)
    assert frame["step"].iloc[-1] == 40
    assert frame["step"].is_monotonic_increasing
    assert frame["epoch"].iloc[-1] == 2 * first["epoch"].iloc[-1]
    assert frame["epoch"].is_monotonic_increasing
    assert frame["seconds"].is_monotonic_increasing


class _Scripted(VAE):
    """A VAE whose held-out ELBO follows a script."""

    def __init__(self, script):
        super().__init__(20, n_batches=2, n_hidden=16, n_latent=3)
        self.script = iter(script)
        self.seen = []

    def objective(self, minibatch, generator=None):
        objective = super().objective(minibatch, generator)
        if self.training:
            return objective
        self.seen.append(_weights(self))
        value = torch.full((minibatch.n_cells,), next(self.script))
        return Elbo(value, torch.zeros(minibatch.n_cells))


def test_the_weights_of_the_best_validation_are_kept(source, split):
    module = _Scripted([-9.0, -3.0, -5.0, -4.0])
    _fit(module, source, split, early_stopping=False)
    assert len(module.seen) == 4
    assert torch.equal(_weights(module), module.seen[1])


def test_early_stopping_waits_for_its_patience(source, split):
    module = _Scripted([-9.0, -3.0, *[-5.0] * 100])
    _, history = _fit(module, source, split, max_steps=100, patience=15, kl_warmup=0.0)
    # Validations come every five steps: the best at ten, then three without improvement.
    assert history.last("step") == 25
    assert torch.equal(_weights(module), module.seen[1])


def test_early_stopping_does_not_cut_the_warm_up_short(source, split):
    module = _Scripted([-1.0, *[-5.0] * 100])
    _, history = _fit(module, source, split, max_steps=100, patience=5, kl_warmup=0.5)
    assert history.rows[-1]["kl_weight"] == 1.0


def test_a_module_is_left_in_evaluation_mode_on_its_device(source, split, vae):
    _fit(vae, source, split)
    assert not vae.training
    assert {value.device.type for value in vae.state_dict().values()} == {"cpu"}


class _Diverging(VAE):
    """A VAE with one term that stops being a number after some steps."""

    def __init__(self, after, term, value=float("nan")):
        super().__init__(20, n_batches=2, n_hidden=16, n_latent=3)
        self.left, self.term, self.value = after, term, value

    def objective(self, minibatch, generator=None):
        found = super().objective(minibatch, generator)
        if self.training:
            self.left -= 1
            if self.left < 0:
                terms = {"reconstruction": found.reconstruction, "kl": found.kl}
                terms[self.term] = terms[self.term] * self.value
                return Elbo(**terms)
        return found


@pytest.mark.parametrize("term", ["reconstruction", "kl"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_divergence_names_its_step_and_term_and_leaves_usable_weights(source, split, term, value):
    module = _Diverging(7, term, value)
    with pytest.raises(TrainingDivergedError, match=rf"step 8:.*{term}.*smaller learning_rate") as caught:
        _fit(module, source, split)
    assert {"kl": "reconstruction", "reconstruction": "kl,"}[term] not in str(caught.value)
    assert bool(_weights(module).isfinite().all())
    assert not module.training


def test_a_divergence_before_any_validation_leaves_the_weights_of_the_start(source, split):
    module = _Diverging(0, "kl")
    before = _weights(module)
    with pytest.raises(TrainingDivergedError, match="step 1:"):
        _fit(module, source, split)
    assert torch.equal(_weights(module), before)


def test_a_divergence_in_later_training_counts_from_the_very_first_step(source, split):
    history = History([{"step": 100, "epoch": 3, "seconds": 1.0}])
    with pytest.raises(TrainingDivergedError, match="step 103:"):
        _fit(_Diverging(2, "kl"), source, split, history=history)


def test_an_absurd_learning_rate_diverges_with_a_message(source, split, vae):
    with pytest.raises(TrainingDivergedError, match=r"learning_rate \(it was 1e\+20\)"):
        _fit(vae, source, split, learning_rate=1e20, max_steps=200, lr_warmup=0.0, early_stopping=False)
    assert bool(_weights(vae).isfinite().all())


class _Interrupting(Callback):
    def __init__(self, hook, how):
        self.hook, self.how, self.times = hook, how, 0

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "__dict__").get("hook"):
            return self._interrupt
        return object.__getattribute__(self, name)

    def _interrupt(self, *args, **kwargs):
        self.times += 1
        if self.times > 1:
            return
        if self.how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["signal", "exception"])
@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_train_start", "on_train_batch_end", "on_validation_end"])
def test_an_interrupt_leaves_a_usable_module_and_the_signal_to_its_owner(source, split, vae, how, hook):
    before = signal.getsignal(signal.SIGINT)
    interrupted, _ = _fit(vae, source, split, max_steps=400, callbacks=[_Interrupting(hook, how)], early_stopping=False)
    assert interrupted
    assert signal.getsignal(signal.SIGINT) is before
    assert not vae.training
    assert bool(_weights(vae).isfinite().all())


def test_a_signal_ends_training_early(source, split, vae):
    callback = _Interrupting("on_train_batch_end", "signal")
    _, history = _fit(vae, source, split, max_steps=4000, callbacks=[callback], early_stopping=False)
    assert history.last("step") < 100


def test_errors_of_callbacks_reach_the_user(source, split, vae):
    class Failing(Callback):
        def on_train_batch_end(self, *args):
            raise ZeroDivisionError("mine")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError, match="mine"):
        _fit(vae, source, split, callbacks=[Failing()])
    assert signal.getsignal(signal.SIGINT) is before
    assert not vae.training


def test_callbacks_are_called_and_their_list_is_not_changed(source, split, vae):
    class Recorder(Callback):
        def __init__(self):
            self.scores = []

        def on_validation_end(self, trainer, pl_module):
            self.scores.append(float(trainer.callback_metrics["elbo_validation"]))

    callbacks = [Recorder()]
    _, history = _fit(vae, source, split, callbacks=callbacks)
    assert len(callbacks) == 1
    np.testing.assert_allclose(callbacks[0].scores, history.to_frame()["elbo_validation"], rtol=1e-6)


@pytest.mark.parametrize("max_steps", [20, 23])
def test_averages_of_weights_are_scored_and_kept(source, split, max_steps):
    """Training goes on from the weights themselves, and ends on a validation or behind it."""
    module = _new()
    _, plain = _fit(_new(), source, split, max_steps=max_steps, early_stopping=False)
    averaging = EMAWeightAveraging(decay=0.9)
    _, history = _fit(module, source, split, max_steps=max_steps, callbacks=[averaging], early_stopping=False)
    frames = plain.to_frame(), history.to_frame()
    np.testing.assert_array_equal(*(frame["elbo_train"] for frame in frames))
    # The first average is of the first weights alone.
    differs = (frames[0]["elbo_validation"] != frames[1]["elbo_validation"]).tolist()
    assert differs == [False] + [True] * (len(differs) - 1)
    scores = []

    class Score(Callback):
        def on_train_start(self, trainer, pl_module):
            scores.append(pl_module.score_start(trainer.datamodule.val_dataloader()))

    _fit(module, source, split, max_steps=1, callbacks=[Score()])
    assert scores == [frames[1]["elbo_validation"].max()]


def test_options_of_the_trainer_are_passed_on(source, split, vae):
    class Precision(Callback):
        def on_fit_start(self, trainer, pl_module):
            self.precision = trainer.precision

    callback = Precision()
    _fit(vae, source, split, callbacks=[callback], options={"precision": "bf16-mixed"})
    assert callback.precision == "bf16-mixed"


def test_known_options_pass():
    check_trainer_options({"precision": 32, "devices": 1, "log_every_n_steps": 1}, [])


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [("precission", "precision"), ("leraning_rate", "learning_rate"), ("max_epoch", "max_epochs")],
)
def test_an_unknown_option_is_refused_with_the_nearest(option, suggestion):
    with pytest.raises(TypeError, match=f"'{option}'.*{suggestion}"):
        check_trainer_options({option: 1}, ["learning_rate"])


def test_suggestions_come_once_and_can_be_taken():
    """Lightning has max_epochs as well as train() itself; it has min_epochs, which train() cannot take."""
    with pytest.raises(TypeError, match=r"'epochs'\. Did you mean max_epochs\?$"):
        check_trainer_options({"epochs": 10}, ["max_epochs", "max_steps"])


def test_an_option_like_no_other_is_refused():
    with pytest.raises(TypeError, match="'zzzz'"):
        check_trainer_options({"zzzz": 1}, [])


def test_modules_without_normalisation_train_with_single_cells(source, split):
    module = VAE(20, n_batches=2, n_hidden=16, n_latent=3, encoder_normalisation="none", decoder_normalisation="layer")
    assert not any(isinstance(part, nn.BatchNorm1d) for part in module.modules())
    _fit(module, source, split, batch_size=1, max_steps=5)
    assert bool(_weights(module).isfinite().all())


MODULES = {
    **{likelihood: lambda likelihood=likelihood: VAE(20, n_batches=2, n_hidden=16, gene_likelihood=likelihood)
       for likelihood in ("nb", "zinb", "poisson", "normal")},
    "latent library size": lambda: VAE(20, n_batches=2, n_hidden=16, use_observed_lib_size=False),
    "dispersion of cells": lambda: VAE(20, n_batches=2, n_hidden=16, dispersion="gene-cell"),
    "layer norm": lambda: VAE(20, n_hidden=16, encoder_normalisation="layer", decoder_normalisation="layer"),
    "autoencoder": lambda: DeterministicAutoencoder(20, n_batches=2, n_hidden=16),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nb", "zinb", "normal", "latent library size", "autoencoder"])
def test_products_in_bfloat16_reach_the_score_of_float32(source, split, name):
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        module = MODULES[name]()
        _fit(module, source, split, max_steps=60, validate_every=30, options={"precision": precision})
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            scores.append(float(module.objective(source.minibatch(split[1]), generator).score().mean()))
    assert scores[1] == pytest.approx(scores[0], rel=0.01)


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson", "normal"])
def test_likelihoods_and_divergences_stay_in_float32(source, gene_likelihood):
    torch.manual_seed(0)
    module = VAE(20, n_batches=2, n_hidden=16, gene_likelihood=gene_likelihood).eval()
    minibatch = source.minibatch(np.arange(50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(minibatch)
        qz, parameters = output.posterior.qz, module.likelihood.parameters_by_name(output.px)
        mixed = module.likelihood.reconstruction(output.px, minibatch)
    assert {value.dtype for value in (qz.loc, qz.scale, output.latent, *parameters.values())} == {torch.float32}
    # What the networks gave is rounded; from there on nothing is.
    assert torch.equal(mixed, module.likelihood.reconstruction(output.px, minibatch))


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson", "normal"])
def test_gradients_of_rounded_products_point_where_the_exact_ones_do(source, gene_likelihood):
    torch.manual_seed(0)
    module = VAE(20, n_batches=2, n_hidden=16, gene_likelihood=gene_likelihood).eval()
    gradients = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            score = module.objective(source.minibatch(np.arange(50)), torch.Generator().manual_seed(0)).score().mean()
        score.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in module.parameters()]))
    exact, mixed = gradients
    assert mixed.dtype == torch.float32
    assert float((mixed - exact).norm()) < 0.05 * float(exact.norm())


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true", 16])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match=r"precision=.* is not offered: pass \"bf16-mixed\""):
        check_trainer_options({"precision": precision}, [])


@pytest.mark.parametrize(("option", "value"), [("sync_batchnorm", True), ("gradient_clip_val", 1.0)])
def test_options_without_a_meaning_say_what_to_do(option, value):
    with pytest.raises(TypeError, match=f"cannot take {option}={value!r}: "):
        check_trainer_options({option: value}, [])


def test_an_empty_minibatch_of_held_out_cells_counts_for_nothing(source):
    for name, make in MODULES.items():
        terms = make().eval().objective(source.block(np.arange(0), [0])[0]).terms()
        assert all(value.shape == (0,) for value in terms.values()), name


@pytest.mark.parametrize("validates", [True, False])
def test_scoring_the_start_changes_nothing_else(source, split, validates):
    """Neither random draws nor dropout nor the history; where all that follows is better, the weights are the same."""
    one, two = _new(), _new()
    held_out = split[1] if validates else np.arange(0)
    _, of_one = _fit(one, source, (split[0], held_out), start_counts=False)
    _, of_two = _fit(two, source, (split[0], held_out), start_counts=True)
    frames = [history.to_frame().drop(columns="seconds") for history in (of_one, of_two)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert torch.equal(_weights(one), _weights(two))


def test_the_start_is_left_where_no_weights_are_better(source, split, vae):
    _fit(vae, source, split, max_steps=100)
    best = _weights(vae)
    for interrupted in (False, True):
        callbacks = [_Interrupting("on_train_batch_end", "exception")] if interrupted else []
        _fit(vae, source, split, learning_rate=0.5, start_counts=True, callbacks=callbacks)
        assert torch.equal(_weights(vae), best)
        assert not vae.training


# The package exports nothing of that name, and the function of the module has it.
fit_module = importlib.import_module("scvae_ext.train.fit")


def test_patience_is_counted_in_validations_as_far_apart_as_they_are(source, split, vae, monkeypatch):
    """Of four steps an epoch, and a validation every six, it comes every two epochs."""
    asked, kind = [], fit_module.PatientEarlyStopping
    monkeypatch.setattr(
        fit_module, "PatientEarlyStopping", lambda *arguments: (asked.append(arguments[1]), kind(*arguments))[1]
    )
    history = History()
    plan = TrainingPlan(8, batch_size=40, validate_every=6, patience=24)
    fit_module.fit(vae, source, *split, plan, seed=0, history=history, progress_bar=False)
    assert [row["step"] for row in history.rows] == [8]
    assert asked == [3]


def test_training_that_goes_on_does_not_go_through_the_same_minibatches_again(source, split, vae, monkeypatch):
    epochs, kind = [], fit_module.CellDataModule
    monkeypatch.setattr(
        fit_module,
        "CellDataModule",
        lambda *a, **options: (epochs.append(options["first_epoch"]), kind(*a, **options))[1],
    )
    history = History()
    for _ in range(2):
        fit_module.fit(vae, source, *split, TrainingPlan(8, batch_size=40), seed=0, history=history, progress_bar=False)
    assert epochs == [0, 2]
