"""The training that all models share."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int

from scvae_ext.data import CellSource, split_indices
from scvae_ext.likelihoods import gene_statistics
from scvae_ext.models.cells import BATCH_SIZE, Cells
from scvae_ext.models.core import ModelCore
from scvae_ext.models.defaults import (
    default_max_steps,
    default_patience,
    default_weight_decay,
    scored_cells,
    steps_between_validations,
)
from scvae_ext.models.options import plan_options, true_or_false, whole_number
from scvae_ext.models.query import select_cells
from scvae_ext.modules import Bound, KeptReference, Trainable
from scvae_ext.train import TrainingPlan
from scvae_ext.train.history import History

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from lightning.pytorch.callbacks import Callback

__all__ = ["TrainingMixin"]

_Split: TypeAlias = tuple[
    Int[np.ndarray, "train"] | None, Int[np.ndarray, "validation"] | None, Int[np.ndarray, "test"] | None
]


class TrainingMixin(ModelCore):
    """Training of a model."""

    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        """Start the module from moments of the training cells."""
        minibatches = source.minibatches(train, BATCH_SIZE)
        self.module.initialise(gene_statistics(minibatches, compositional=self.registry.size_factor_key is None))

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        train_size: float = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        early_stopping: bool = True,
        *,
        max_steps: int | None = None,
        learning_rate: float = 4e-3,
        weight_decay: float | None = None,
        kl_warmup: float = 0.3,
        max_kl_weight: float = 1.0,
        objective: Bound = "elbo",
        n_samples: int = 1,
        free_bits: float = 0.0,
        batch_penalty: float = 0.0,
        early_stopping_patience: int | None = None,
        seed: int | None = None,
        callbacks: "Callback | Sequence[Callback] | None" = None,
        enable_progress_bar: bool = True,
        plan_kwargs: Mapping[str, Any] | None = None,
        datamodule: "LightningDataModule | None" = None,
        **trainer_options: Any,
    ) -> None:
        r"""Train, and leave the weights of the best validation. Called again, it goes on from there.

        The weights that it then starts from are scored as well, and left where none that follow are better. They are
        not where other cells are held out than before, nor with another ``max_kl_weight`` or other ``free_bits``, which
        validation does not know.

        Parameters
        ----------
        max_epochs, max_steps
            Training length, in passes over the training cells or in optimiser steps. By default it grows with the
            number of training cells to the power of 3/4; see the page on the model.
        accelerator, devices
            As for :class:`lightning.Trainer`. Several devices train together, each with its share of the cells; by
            default they share out the updates as well. See the page on several devices and machines.
        train_size, validation_size, shuffle_set_split
            Share of the cells to train on and to validate on (by default all others), drawn at random or in order.
            The first training decides; later ones keep its split. One that fails decides nothing.
        batch_size
            Cells of a minibatch, on each device.
        early_stopping
            Whether training may end before its planned length, when the validation score stops improving.
        learning_rate, weight_decay
            Peak learning rate and decoupled weight decay of Adam; the decay is stronger for fewer cells by default.
        kl_warmup
            Fraction of the planned training over which the weight of the KL divergence rises to ``max_kl_weight``.
        max_kl_weight
            Final weight of the KL divergence, the beta of a beta-VAE; one for the ELBO.
        objective
            ``"elbo"``, or ``"iwae"``: the importance-weighted bound :math:`\log \frac1K \sum_k w_k` with K samples
            (Burda et al., ICLR 2016), whose encoder gets the doubly reparameterised gradient (Tucker et al., ICLR
            2019). Then ``history`` has it as ``iwae``, beside the ELBO, and by it the best weights are chosen.
        n_samples
            Samples of each cell: the K of ``"iwae"``, or the number that the ELBO averages over.
        free_bits
            Nats of divergence from the prior that each latent dimension has for free, as a mean over the minibatch
            (Kingma et al., NeurIPS 2016). Validation, early stopping and all that is reported use the bound with
            neither free bits nor weights.
        batch_penalty
            Nats per cell that it costs if the latent tells all batches apart: the weight of a normalised kernel
            dependence (HSIC) of the posterior mean and the batch, 0 where independent and 1 at most, estimated in each
            minibatch. It rises to its full weight between a fifth and three fifths of a first training, and has it
            from the start in later ones. ``history`` has the dependence as ``batch_dependence``, and the best weights
            are those of the bound less the whole penalty, ``penalised_elbo``. Differences in composition between
            batches are penalised as well; see the page on integration.
        early_stopping_patience
            Steps without improvement before training ends, counted from the end of all warm-up; by default a quarter
            of the planned ones, and at least 500.
        seed
            Seed of the split, of the order of cells and of every random draw; the model's own by default.
        callbacks
            One Lightning callback or several; a list is not changed. Those that average weights
            (``WeightAveraging``, ``EMAWeightAveraging``) have the averages scored and kept. ``ModelCheckpoint`` needs
            ``enable_checkpointing=True``.
        enable_progress_bar
            Whether to show a bar, in a terminal or a notebook; there is none in a log.
        plan_kwargs
            ``lr``, ``weight_decay`` and ``max_kl_weight``, under the names that scvi-tools has for them.
        datamodule
            Lightning data module to train on instead of the model's AnnData. Its loaders yield
            :class:`~scvae_ext.minibatch.Minibatch`, or lists of them, of about ``batch_size`` cells. Its attributes
            ``train_indices`` and ``validation_indices``, where it has them, are taken for the split.
        **trainer_options
            Further options of :class:`lightning.Trainer`; an unknown one is an error.

        Raises
        ------
        TypeError
            If an option is unknown, or a callback cannot be used.
        TrainingDivergedError
            If the objective becomes infinite or not a number.

        Notes
        -----
        Ctrl-C ends training after the current steps and leaves the best weights so far. A training that ends before its
        first update, for lack of time for example, warns, and trains nothing.
        """
        from scvae_ext.train.fit import check_trainer_options, fit
        from scvae_ext.train.given_callbacks import check_callbacks
        from scvae_ext.train.processes import count_processes

        named = inspect.signature(self.train).parameters.values()
        check_trainer_options(trainer_options, [each.name for each in named if each.kind is not each.VAR_KEYWORD])
        callbacks = [] if callbacks is None else [*callbacks] if isinstance(callbacks, Sequence) else [callbacks]
        check_callbacks(callbacks, trainer_options)
        source = self._own_source()
        seed = self.seed if seed is None else whole_number("seed", seed, least=0)
        batch_size = whole_number("batch_size", batch_size)
        # Training that goes on keeps its split, lest cells that were held out are trained on; so does a refit, which is
        # given that of its model.
        split: _Split
        if datamodule is not None:
            split = _split_of(datamodule, source)
        elif self.train_indices is None or self.validation_indices is None:
            split = split_indices(source.n_cells, train_size, validation_size, shuffle_set_split, seed)
        else:
            split = (self.train_indices, self.validation_indices, self.test_indices)
        train = np.arange(source.n_cells) if split[0] is None else split[0]
        validation = scored_cells(source, np.arange(0) if split[1] is None else split[1], seed)
        trainer_options = {"accelerator": accelerator, "devices": devices, **trainer_options}
        n_processes = count_processes(trainer_options)
        if self._n_reference_batches is None:
            self._require_batch_statistics(len(train) // n_processes, batch_size)
        max_steps = self._planned_steps(train, batch_size, n_processes, max_epochs, max_steps)
        options = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "max_kl_weight": max_kl_weight,
            **plan_options(plan_kwargs or {}),
        }
        options["weight_decay"] = self._weight_decay(options["weight_decay"], len(train))
        plan = TrainingPlan(
            max_steps=max_steps,
            batch_size=batch_size,
            kl_warmup=0.0 if self.is_trained else kl_warmup,
            objective=objective,
            n_samples=n_samples,
            free_bits=free_bits,
            batch_penalty=batch_penalty,
            penalty_rise=(0.0, 0.0) if self.is_trained else TrainingPlan.penalty_rise,
            early_stopping=true_or_false("early_stopping", early_stopping),
            validate_every=steps_between_validations(len(validation), n_processes * batch_size),
            patience=default_patience(max_steps) if early_stopping_patience is None else early_stopping_patience,
            **options,
        )
        maximised = (float(plan.max_kl_weight), float(plan.free_bits))
        plan = replace(plan, start_counts=self._is_continued(split[1], maximised))
        trainable = self._trainable(plan)
        history = History(self._history_rows)
        self._weights_hash = None
        self._is_interrupted = False
        self._training_seed = seed
        has_trained = False

        def at_end() -> None:
            nonlocal has_trained
            has_trained = self.is_trained = True
            self._maximised = maximised

        def run(trainable: Trainable, plan: TrainingPlan) -> bool:
            view = self._view(trainable)
            try:
                interrupted: bool = fit(
                    view,
                    source,
                    train,
                    validation,
                    plan,
                    seed=seed,
                    history=history,
                    callbacks=callbacks,
                    progress_bar=enable_progress_bar,
                    trainer_options=trainer_options,
                    datamodule=datamodule,
                    at_end=at_end,
                )
            finally:
                if isinstance(view, KeptReference):
                    view.release()
            self._is_interrupted |= interrupted
            return interrupted

        before = self.train_indices, self.validation_indices, self.test_indices
        goes_on = self.is_trained and all(one is two for one, two in zip(split, before, strict=True))
        start = self._copied_weights()
        try:
            self.train_indices, self.validation_indices, self.test_indices = split
            if not self.is_trained:
                self._initialise(source, train)
            train, validation = self._trained_cells(source, train, validation, may_leave_out=datamodule is None)
            if self.is_trained:
                # New batches of a mapped model were started, once and for all.
                start = self._copied_weights()
            source.keep(validation)
            interrupted = run(trainable, plan)
            if has_trained and not interrupted:
                cells = Cells(source, validation, self.device)
                self._train_further(run, replace(plan, kl_warmup=kl_warmup), cells, history)
        finally:
            if not (has_trained or goes_on):
                # The next training draws a split anew, and its weights must not have seen the cells that it holds out.
                self.train_indices, self.validation_indices, self.test_indices = before
                self.module.load_state_dict(start)
            self._end_training(source, train)
            source.keep(np.arange(0))
            self._history_rows = history.rows

    def _copied_weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def _train_further(
        self,
        run: Callable[[Trainable, TrainingPlan], bool],
        plan: TrainingPlan,
        held_out: Cells,
        history: History,
    ) -> None:
        """Do what follows a training that was not interrupted."""

    def _is_continued(self, validation: Int[np.ndarray, "validation"] | None, maximised: tuple[float, float]) -> bool:
        """Return whether validation can compare the weights that a training starts from with those that it gives.

        Cells that are held out now may have been trained on before. And the ELBO, by which weights are judged whatever
        the weight of its divergence and the bits that are free, would hold on to what it was before they were changed.
        """
        before = self.validation_indices
        same_cells = before is not None and validation is not None and np.array_equal(before, validation)
        return self.is_trained and same_cells and maximised in ((1.0, 0.0), self._maximised)

    def _require_whole_training(self) -> None:
        """Raise where the last training was interrupted: what trains models on its way must not take them for whole."""
        if self._is_interrupted:
            raise KeyboardInterrupt

    def _end_training(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        """Do what has to be done however training ended."""

    def _trained_cells(
        self,
        source: CellSource,
        train: Int[np.ndarray, "train"],
        validation: Int[np.ndarray, "validation"],
        *,
        may_leave_out: bool,
    ) -> tuple[Int[np.ndarray, "trained"], Int[np.ndarray, "scored"]]:
        """Return the cells to train on and those to score, of the cells that the split gives.

        All of them where none may be left out, because they come from elsewhere.
        """
        return train, validation

    def _weight_decay(self, given: float | None, n_train: int) -> float:
        """Return the weight decay, where the user gave none that for the number of training cells."""
        return default_weight_decay(n_train) if given is None else given

    def _view(self, trainable: Trainable) -> Trainable:
        """Return what is handed to the training loop: all of it, unless some is not to be trained."""
        return trainable

    @abstractmethod
    def _trainable(self, plan: TrainingPlan) -> Trainable:
        """Return what to train: the module, or a view of it with the objective that the plan asks for."""

    def _require_batch_statistics(self, n_train: int, batch_size: int) -> None:
        """Raise where batch normalisation would have to normalise a single cell."""
        uses = any(isinstance(layer, torch.nn.BatchNorm1d) for layer in self.module.modules())
        if uses and min(n_train, batch_size) == 1:
            raise ValueError(
                f"{n_train} training cells and batch_size={batch_size} leave one cell in a minibatch, which batch "
                'normalisation cannot work with: use at least two, or build the model with use_batch_norm="none".'
            )

    def _planned_steps(
        self,
        train: Int[np.ndarray, "train"],
        batch_size: int,
        n_processes: int,
        max_epochs: int | None,
        max_steps: int | None,
    ) -> int:
        """Return the number of optimiser steps from what the user gave, or from the data."""
        if max_epochs is not None and max_steps is not None:
            raise ValueError(
                f"max_epochs={max_epochs!r} and max_steps={max_steps!r} were both given: pass one of them."
            )
        if max_steps is not None:
            return whole_number("max_steps", max_steps)
        steps_per_epoch = math.ceil(len(train) / (batch_size * n_processes))
        if max_epochs is not None:
            return whole_number("max_epochs", max_epochs) * steps_per_epoch
        return default_max_steps(len(train), steps_per_epoch, n_processes)


def _split_of(datamodule: "LightningDataModule", source: CellSource) -> _Split:
    """Return the training, validation and test cells that a data module names, each ``None`` where it does not."""
    train, validation, test = (
        None
        if (named := getattr(datamodule, f"{name}_indices", None)) is None
        else select_cells(named, source.obs_names)
        for name in ("train", "validation", "test")
    )
    return train, validation, test
