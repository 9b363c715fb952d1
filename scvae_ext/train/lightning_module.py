"""The training step, several optimiser updates at a time."""

import time
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules import Trainable
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.history import History
from scvae_ext.train.plan import TrainingPlan

__all__ = ["TrainingModule"]


class TrainingModule(L.LightningModule):
    """Lightning's view of a module: a batch of the loop is a block of minibatches, each with its own update.

    Lightning costs about a millisecond for every batch of its loop, as much as a quarter of an update on a CPU; a
    block shares that cost among its minibatches.

    Parameters
    ----------
    module
        What is trained.
    plan
        How.
    history
        Table that rows are appended to.
    seed
        Seed of the validation samples, which are the same at every validation.
    """

    def __init__(self, module: Trainable, plan: TrainingPlan, history: History, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module = module
        self.plan = plan
        self.history = history
        self.seed = seed
        self.step = 0
        self._first_step = int(history.last("step"))
        self._seconds_before = history.last("seconds")
        self._start = time.perf_counter()
        self._training = _Mean()
        self._validation = _Mean()
        self._validation_generator: torch.Generator | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with decoupled weight decay, all its passes over the parameters fused into one."""
        return torch.optim.AdamW(
            self.module.parameters(), lr=self.plan.learning_rate, weight_decay=self.plan.weight_decay, fused=True
        )

    def training_step(self, block: Sequence[Minibatch], batch_index: int) -> None:
        """Update once for each minibatch of the block.

        Parameters
        ----------
        block
            Minibatches.
        batch_index
            Position of the block in the epoch.
        """
        optimizer = self.optimizers()
        scores = []
        for minibatch in block:
            if self.step >= self.plan.max_steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = self.plan.learning_rate_at(self.step)
            objective = self.module.objective(minibatch)
            loss = -objective.score(self.plan.kl_weight_at(self.step)).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            with torch.no_grad():
                terms = objective.terms()
                sums = torch.stack([term.detach().sum() for term in terms.values()])
            scores.append(sums)
            self._training.add(tuple(terms), sums, minibatch.n_cells)
            self.step += 1
        if scores:
            self._stop_if_diverged(torch.stack(scores), tuple(terms))

    def _stop_if_diverged(self, sums: Tensor, names: tuple[str, ...]) -> None:
        """Raise at the first step of the block whose objective is not finite; one synchronisation a block."""
        finite = torch.isfinite(sums)
        if bool(finite.all()):
            return
        row = int((~finite.all(dim=1)).nonzero()[0])
        broken = [name for name, good in zip(names, finite[row].tolist(), strict=True) if not good]
        raise TrainingDivergedError(
            f"Training diverged at step {self._first_step + self.step - len(sums) + row + 1}: "
            f"{', '.join(broken)} is not finite. Try a smaller learning_rate (it was {self.plan.learning_rate:g}), "
            "a longer kl_warmup, or look for cells with extreme counts."
        )

    def on_validation_epoch_start(self) -> None:
        """Rewind the random samples, so that validations differ by the weights alone."""
        self._validation_generator = torch.Generator(self.device).manual_seed(self.seed)

    def validation_step(self, minibatch: Minibatch, batch_index: int) -> None:
        """Score held-out cells with the KL divergence in full.

        Parameters
        ----------
        minibatch
            The cells.
        batch_index
            Position of the minibatch.
        """
        terms = self.module.objective(minibatch, self._validation_generator).terms()
        sums = torch.stack([term.sum() for term in terms.values()])
        self._validation.add(tuple(terms), sums, minibatch.n_cells)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out score, for early stopping and for the callbacks of the user."""
        means = self._validation.take(self._reduce)
        score = means[self.module.monitor]
        self.log(f"{self.module.monitor}_validation", score)
        self._record(means)

    def on_train_epoch_end(self) -> None:
        """Record the epoch where nothing is held out."""
        if not self.trainer.enable_validation:
            self._record({})

    def _record(self, validation: dict[str, float]) -> None:
        if self.step == 0:
            return
        training = self._training.take(self._reduce)
        self.history.append(
            {
                "step": self._first_step + self.step,
                "epoch": self.trainer.current_epoch + 1,
                **{f"{name}_train": value for name, value in training.items()},
                **{f"{name}_validation": value for name, value in validation.items()},
                "kl_weight": self.plan.kl_weight_at(self.step - 1),
                "learning_rate": self.plan.learning_rate_at(self.step - 1),
                "seconds": self._seconds_before + time.perf_counter() - self._start,
            }
        )

    def _reduce(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")


class _Mean:
    """Mean over cells of named terms, summed on the device and read once."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._n_cells = 0

    def add(self, names: tuple[str, ...], sums: Tensor, n_cells: int) -> None:
        self._names = names
        self._sums = sums.double() if self._sums is None else self._sums + sums
        self._n_cells += n_cells

    def take(self, reduce) -> dict[str, float]:
        if self._sums is None:
            return {}
        total = reduce(torch.cat([self._sums, self._sums.new_tensor([self._n_cells])]))
        means = (total[:-1] / total[-1]).tolist()
        self._sums, self._n_cells = None, 0
        return dict(zip(self._names, means, strict=True))
