"""Ctrl-C in the midst of a training."""

import os
import signal

from lightning.pytorch.callbacks import Callback

from scvae_ext.train import fit as module


class CtrlC(Callback):
    """Ctrl-C after the first block of steps, or after a later one."""

    def __init__(self, after=1):
        self.left = after

    def on_train_batch_end(self, *args):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def interrupt_every_training(monkeypatch):
    """Press Ctrl-C in each training that starts; return the list in which they are counted."""
    trainings, fit = [], module.fit

    def interrupted(*args, callbacks=(), **options):
        trainings.append(args)
        return fit(*args, callbacks=[*callbacks, CtrlC()], **options)

    monkeypatch.setattr(module, "fit", interrupted)
    return trainings
