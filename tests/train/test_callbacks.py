import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from scvae_ext.train.callbacks import BestWeights, GentleInterrupt, PatientEarlyStopping, TrainingBar

pytestmark = pytest.mark.usefixtures("unchecked")


class _Scored(nn.Module):
    def __init__(self, monitor, monitor_mode):
        super().__init__()
        self.monitor, self.monitor_mode = monitor, monitor_mode
        self.weight = nn.Parameter(torch.zeros(()))


def _trainer(**metrics):
    return SimpleNamespace(
        sanity_checking=False,
        callback_metrics=metrics,
        is_global_zero=True,
        should_stop=False,
        current_epoch=0,
        world_size=1,
    )


@pytest.mark.parametrize(("mode", "best"), [("max", 2.0), ("min", 1.0)])
def test_best_weights_are_kept_and_restored(mode, best):
    module = _Scored("score", mode)
    callback = BestWeights(module)
    for weight, score in [(1.0, -3.0), (2.0, 5.0), (3.0, 4.0), (4.0, float("nan"))]:
        with torch.no_grad():
            module.weight.fill_(weight)
        callback.consider(score)
    callback.restore()
    assert float(module.weight.detach()) == best


def test_without_a_validation_the_weights_stay():
    module = _Scored("score", "max")
    callback = BestWeights(module)
    callback.consider(None)
    with torch.no_grad():
        module.weight.fill_(7.0)
    callback.restore()
    assert float(module.weight.detach()) == 7.0


def test_patience_begins_when_the_objective_has_settled(monkeypatch):
    training = SimpleNamespace(module=_Scored("elbo", "max"), plan=SimpleNamespace(settled_from=30.0), step=0)
    callback, asked = PatientEarlyStopping(training, 4), []
    monkeypatch.setattr(EarlyStopping, "on_validation_end", lambda *_: asked.append(training.step))
    for training.step in (10, 29, 30, 40):
        callback.on_validation_end(_trainer(), None)
    assert asked == [30, 40]


def test_the_bar_counts_steps_and_shows_the_held_out_score(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    training = SimpleNamespace(module=_Scored("elbo", "max"), plan=SimpleNamespace(max_steps=20), step=0, history=None)
    bar, trainer = TrainingBar(training), _trainer(elbo_validation=torch.tensor(-123.456))
    bar.on_fit_start(trainer, None)
    training.step = 20
    bar.on_train_batch_end(trainer, None, None, None, 0)
    bar.on_validation_end(trainer, None)
    bar.on_fit_end(trainer, None)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "held-out ELBO=-123.5" in shown


def test_the_bar_is_silent_where_there_is_no_terminal(capsys):
    training = SimpleNamespace(module=_Scored("elbo", "max"), plan=SimpleNamespace(max_steps=20), step=0)
    bar = TrainingBar(training)
    bar.on_fit_start(_trainer(), None)
    training.step = 20
    bar.on_train_batch_end(_trainer(), None, None, None, 0)
    bar.on_exception(_trainer(), None, ValueError())
    assert capsys.readouterr().err == ""


def test_the_first_interrupt_asks_to_stop_and_the_second_interrupts_unless_training_has_ended():
    before = signal.getsignal(signal.SIGINT)
    interrupt, trainer = GentleInterrupt(), _trainer()
    interrupt.on_fit_start(trainer, None)
    try:
        signal.raise_signal(signal.SIGINT)
        assert trainer.should_stop
        assert interrupt.interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupt.end()
        signal.raise_signal(signal.SIGINT)
    finally:
        interrupt.release()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_after_the_end_is_taken_note_of():
    interrupt = GentleInterrupt()
    interrupt.on_fit_start(_trainer(), None)
    try:
        interrupt.end()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
    finally:
        interrupt.release()
    assert interrupt.interrupted


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    done = []

    def listen():
        interrupt = GentleInterrupt()
        interrupt.on_fit_start(_trainer(), None)
        interrupt.release()
        done.append(True)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert done
    assert signal.getsignal(signal.SIGINT) is before
