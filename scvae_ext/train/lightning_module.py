"""The training step, several optimiser updates at a time."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from scvae_ext.minibatch import Minibatch
from scvae_ext.modules import HandDerivedElbo, Objective, Trainable
from scvae_ext.nn import Dispersion, Loadings, SparseLinear
from scvae_ext.train.errors import TrainingDivergedError
from scvae_ext.train.global_state import seed_of_process
from scvae_ext.train.history import History
from scvae_ext.train.optimizer import LeanAdamW
from scvae_ext.train.plan import TrainingPlan

__all__ = ["TrainingModule"]


class TrainingModule(LightningModule):
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
    n_train
        Number of training cells, among which priors on parameters are shared out.
    seed
        Seed of the validation samples, which are the same at every validation.
    """

    def __init__(self, module: Trainable, plan: TrainingPlan, history: History, n_train: int, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module = module
        self.plan = plan
        self.history = history
        self.n_train = n_train
        self.seed = seed
        self.step = 0
        self.stop_requested = False
        self._recorded_step = 0
        self._between_epochs = False
        self._first_step = int(history.last("step"))
        self._first_epoch = int(history.last("epoch"))
        self._seconds_before = history.last("seconds")
        self._start = time.perf_counter()
        self._training = _Mean()
        self._validation = _Mean()
        self._scores: dict[str, float] | None = None
        self._validation_generator: torch.Generator | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with decoupled weight decay of the linear maps, all its passes over the parameters fused."""
        modules = list(self.module.modules())
        linear_maps = [layer for layer in modules if isinstance(layer, (torch.nn.Linear, SparseLinear))]
        decayed = [layer.weight for layer in linear_maps if not isinstance(layer, Loadings)]
        dispersions = [dispersion.log_value for dispersion in modules if isinstance(dispersion, Dispersion)]
        grouped = {id(value) for value in (*decayed, *dispersions)}
        others = [value for value in self.module.parameters() if id(value) not in grouped]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "lr_scale": 1.0},
            {"params": dispersions, "lr_scale": self.plan.dispersion_lr_scale, "weight_decay": 0.0},
            {"params": others, "lr_scale": 1.0, "weight_decay": 0.0},
        ]
        for group in groups:
            group["params"] = [value for value in group["params"] if value.requires_grad]
        groups = [group for group in groups if group["params"]]
        return LeanAdamW(groups, lr=self.plan.learning_rate, weight_decay=self.plan.weight_decay)

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
        if isinstance(optimizer, list):
            raise TypeError("configure_optimizers() must return one optimizer.")
        scores, n_cells = [], 0
        by_hand = self._hand_derived()
        for minibatch in block:
            if self.step >= self.plan.max_steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = self.plan.learning_rate_at(self.step) * group["lr_scale"]
            kl_weight, penalty_share = self.plan.kl_weight_at(self.step), self.plan.penalty_share_at(self.step)
            if by_hand is not None and by_hand.takes(minibatch):
                objective: Objective = by_hand.backward(minibatch, kl_weight, self.n_train, penalty_share)
            else:
                objective = self._backward(minibatch, kl_weight, penalty_share, optimizer)
            optimizer.step()
            with torch.no_grad():
                terms = objective.terms()
                sums = torch.stack([term.detach().sum() for term in terms.values()])
            scores.append(sums)
            n_cells += minibatch.n_cells
            self.step += 1
        if scores:
            of_block = torch.stack(scores)
            self._training.add(tuple(terms), _precise(of_block).sum(0), n_cells)
            self._end_block(of_block, tuple(terms))

    def _backward(
        self, minibatch: Minibatch, kl_weight: float, penalty_share: float, optimizer: LightningOptimizer
    ) -> Objective:
        objective = self.module.objective(minibatch)
        loss = -objective.score(kl_weight, penalty_share).mean()
        log_prior = self.module.log_prior()
        if log_prior is not None:
            loss = loss - log_prior / self.n_train
        optimizer.zero_grad()
        # Gradients keep the precision of what they belong to.
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)
        self.module.keep_fixed()
        return objective

    def _hand_derived(self) -> HandDerivedElbo | None:
        """Return the objective whose gradients need no graph, where it is all that anybody asks for.

        Processes that train together share gradients as torch's graph comes by them, and callbacks may want to see it.
        """
        hooks = ("on_before_backward", "on_after_backward", "on_before_zero_grad")
        callbacks = getattr(self.trainer, "callbacks", [])
        is_plain = (
            self.device.type == "cpu"
            and isinstance(self.trainer.strategy, SingleDeviceStrategy)
            and self.trainer.precision == "32-true"
            and not torch.is_anomaly_enabled()
            and not any(is_overridden(hook, callback, Callback) for hook in hooks for callback in callbacks)
        )
        return HandDerivedElbo.of(self.module) if is_plain else None

    def _end_block(self, sums: Tensor, names: tuple[str, ...]) -> None:
        """Raise at the first step of the block whose objective is not finite, and stop where a process was asked to.

        The one synchronisation of a block. Processes that train together decide by the sums of all, and so alike.
        """
        if self.trainer.world_size > 1:
            asked = sums.new_full((1,), float(self.stop_requested))
            of_all = self._reduce(torch.cat([asked, sums.flatten()]))
            sums = of_all[1:].view_as(sums)
            if bool(of_all[0] > 0):
                self.stop_requested = self.trainer.should_stop = True
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

    def on_fit_start(self) -> None:
        """Give each process random draws of its own; those of the first are those of a single one."""
        if self.global_rank > 0:
            torch.manual_seed(seed_of_process(self.seed, self.global_rank))

    def on_validation_epoch_start(self) -> None:
        """Rewind the random samples, so that validations differ by the weights alone."""
        self._average_buffers()
        self._scores = None
        seed = seed_of_process(self.seed, self.global_rank)
        self._validation_generator = torch.Generator(self.device).manual_seed(seed)

    def _average_buffers(self) -> None:
        """Give all processes the mean of the running moments that each has seen in its own minibatches."""
        buffers = [buffer for buffer in self.module.buffers() if buffer.is_floating_point()]
        if self.trainer.world_size == 1 or not buffers:
            return
        joined = self._reduce(torch.cat([_precise(buffer).flatten() for buffer in buffers])) / self.trainer.world_size
        for buffer, mean in zip(buffers, joined.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

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

    def scores(self) -> dict[str, float]:
        """Return the means of the validation that has just come to its end."""
        if self._scores is None:
            self._scores = self._validation.take(self._reduce)
        return self._scores

    def on_validation_epoch_end(self) -> None:
        """Log the held-out score, for early stopping and for the callbacks of the user."""
        means = self.scores()
        score = means[self.module.monitor]
        self.log(f"{self.module.monitor}_validation", score, sync_dist=True)
        self._record(means)

    def on_train_epoch_end(self) -> None:
        """Record the epoch where nothing is held out."""
        if not self.trainer.enable_validation:
            self._average_buffers()
            self._record({})

    def finish(self, held_out: Iterable[Minibatch]) -> float | None:
        """Score and record the last steps, where training did not end on a validation.

        Parameters
        ----------
        held_out
            Minibatches of held-out cells; there may be none.

        Returns
        -------
        float or None
            Held-out score of the final weights, or ``None`` where they were scored before or nothing is held out.
        """
        if self.step == 0 or self._recorded_step == self.step:
            return None
        self._between_epochs = True
        means = self._score(held_out)
        self._record(means)
        return means.get(self.module.monitor)

    def score_start(self, held_out: Iterable[Minibatch]) -> float | None:
        """Score the weights of the start, as a validation does; training goes on as if nothing had been scored.

        Parameters
        ----------
        held_out
            Minibatches of held-out cells; there may be none.
        """
        # The loader itself draws a number from the default generator.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            score = self._score(held_out).get(self.module.monitor)
        self.module.train()
        return score

    def _score(self, held_out: Iterable[Minibatch]) -> dict[str, float]:
        self.module.eval()
        with torch.inference_mode(), self.trainer.precision_plugin.val_step_context():
            self.on_validation_epoch_start()
            for position, minibatch in enumerate(held_out):
                self.validation_step(minibatch.to(self.device), position)
        return self.scores()

    def _record(self, validation: dict[str, float]) -> None:
        if self.step == 0:
            return
        self._recorded_step = self.step
        training = self._training.take(self._reduce)
        seconds = time.perf_counter() - self._start
        if self.trainer.world_size > 1:
            seconds = float(self._reduce(torch.tensor([seconds], device=self.device))) / self.trainer.world_size
        self.history.append(
            {
                "step": self._first_step + self.step,
                "epoch": self._first_epoch + self.trainer.current_epoch + (0 if self._between_epochs else 1),
                **{f"{name}_train": value for name, value in training.items()},
                **{f"{name}_validation": value for name, value in validation.items()},
                "kl_weight": self.plan.kl_weight_at(self.step - 1),
                "learning_rate": self.plan.learning_rate_at(self.step - 1),
                "seconds": self._seconds_before + seconds,
            }
        )

    def _reduce(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    def get_extra_state(self) -> dict[str, Any]:
        """Return what a process that only waited for this one has to know besides the weights."""
        return {"history": self.history.rows, "step": self.step, "stop_requested": self.stop_requested}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what happened in the process that trained.

        Parameters
        ----------
        state
            As :meth:`get_extra_state` gives it.
        """
        self.history.rows[:] = state["history"]
        self.step, self.stop_requested = state["step"], state["stop_requested"]


class _Mean:
    """Mean over cells of named terms, summed on the device and read once."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums: Tensor | None = None
        self._n_cells = 0

    def add(self, names: tuple[str, ...], sums: Tensor, n_cells: int) -> None:
        self._names = names
        precise = _precise(sums)
        self._sums = precise if self._sums is None else self._sums + precise
        self._n_cells += n_cells

    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        if self._sums is None:
            return {}
        total = reduce(torch.cat([self._sums, self._sums.new_tensor([self._n_cells])]))
        means = (total[:-1] / total[-1]).tolist()
        self._sums, self._n_cells = None, 0
        return dict(zip(self._names, means, strict=True))


def _precise(values: Tensor) -> Tensor:
    # Metal has no double precision.
    return values if values.device.type == "mps" else values.double()
