"""What every model shares: set-up, training, its AnnData, saving and loading."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Int
from torch import Tensor

from scvae_ext.data import CellSource, Registry, align, read_registry, setup_anndata, split_indices
from scvae_ext.likelihoods import gene_statistics
from scvae_ext.models.defaults import default_max_steps, default_weight_decay, scored_cells, steps_between_validations
from scvae_ext.models.inference import BATCH_SIZE, Cells
from scvae_ext.models.options import plan_options, true_or_false, whole_number
from scvae_ext.models.output import check_out, write_pieces
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection, select_cells
from scvae_ext.models.results import fingerprint, names_hash, weights_hash, write_result
from scvae_ext.models.saving import read_model, write_model
from scvae_ext.modules import Bound, Trainable
from scvae_ext.train import TrainingPlan

if TYPE_CHECKING:
    from lightning import LightningDataModule
    from lightning.pytorch.callbacks import Callback

    from scvae_ext.modules import VAE, DeterministicAutoencoder
    from scvae_ext.train.history import History

__all__ = ["BaseModel"]

_Split: TypeAlias = tuple[
    Int[np.ndarray, "train"] | None, Int[np.ndarray, "validation"] | None, Int[np.ndarray, "test"] | None
]


class BaseModel(ABC):
    """A module, the registry of the data that it is for, and the AnnData that results go to."""

    latent_key: ClassVar[str]
    expression_key: ClassVar[str]
    module: "VAE | DeterministicAutoencoder"

    def __init__(self, adata: AnnData, options: Mapping[str, Any], seed: int) -> None:
        self._build(read_registry(adata), options, seed)
        self.adata = adata

    def _build(self, registry: Registry, options: Mapping[str, Any], seed: int) -> None:
        """Build the untrained module without touching the random state of the caller."""
        for name in ("n_hidden", "n_latent", "n_layers"):
            whole_number(name, options[name])
        if not 0 <= options["dropout_rate"] < 1:
            raise ValueError(f"dropout_rate={options['dropout_rate']!r} must be at least 0 and below 1.")
        self.registry = registry
        self.seed = whole_number("seed", seed, least=0)
        self._options = {name: _plain(value) for name, value in options.items()}
        self._adata: AnnData | None = None
        self._source: CellSource | None = None
        self._fingerprint: tuple[object, ...] = ()
        self._cells_hash: str | None = None
        self._history_rows: list[dict[str, float]] = []
        self._weights_hash: str | None = None
        self._training_seed: int | None = None
        self.is_trained = False
        self.train_indices: Int[np.ndarray, train] | None = None
        self.validation_indices: Int[np.ndarray, validation] | None = None
        self.test_indices: Int[np.ndarray, test] | None = None
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            self.module = self._make_module(registry, self._options)
        self.module.eval()

    @abstractmethod
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> "VAE | DeterministicAutoencoder":
        """Build the module for data of this registry."""

    def _initialise(self, source: CellSource, train: Int[np.ndarray, "train"]) -> None:
        """Start the module from moments of the training cells."""
        minibatches = source.minibatches(train, BATCH_SIZE)
        self.module.initialise(gene_statistics(minibatches, compositional=self.registry.size_factor_key is None))

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Say where counts, batches and covariates are; validate them; write the registry into ``adata.uns``.

        Parameters
        ----------
        adata
            Cells by genes, with raw counts. A view becomes an AnnData of its own.
        layer
            Layer with the counts; ``X`` where ``None``.
        batch_key, labels_key
            Columns of ``adata.obs`` with the experimental batch and with the cell type.
        size_factor_key
            Column with size factors (positive, around one) to use in place of the library size.
        categorical_covariate_keys, continuous_covariate_keys
            Columns with further covariates.

        Raises
        ------
        ValueError
            If a key is missing or its values cannot be used; the message names the key, the value and what to do.
        """
        setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        )

    @property
    def adata(self) -> AnnData:
        """AnnData that getters read from, and write to, where they are given no other.

        It is matched anew where it was filtered, sorted or relabelled in place. With other cells than before, the split
        into training and held-out cells is forgotten.
        """
        if self._adata is None:
            raise ValueError("The model was loaded without an AnnData: pass adata=..., or set model.adata = adata.")
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        source = align(adata, self.registry)
        self._require_valid(source)
        self._source, self._adata, self._fingerprint = source, adata, fingerprint(adata, self.registry)
        # The split belongs to the cells that were trained on.
        cells = names_hash(adata.obs_names)
        if self._cells_hash not in (None, cells):
            self.train_indices = self.validation_indices = self.test_indices = None
        self._cells_hash = cells

    @property
    def history(self) -> pd.DataFrame:
        """Figures of training, a row a validation; terms are means per cell, the ELBO in nats and higher is better."""
        return pd.DataFrame(self._history_rows)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.module.parameters()).device

    def to_device(self, device: str | torch.device) -> None:
        """Move the module, for getters.

        Parameters
        ----------
        device
            ``"cpu"``, ``"cuda:0"``, ...
        """
        self.module.to(device)

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

        Parameters
        ----------
        max_epochs, max_steps
            Training length, in passes over the training cells or in optimiser steps. By default it grows with the
            square root of the number of counts that are not zero; see the page on the model.
        accelerator, devices
            As for :class:`lightning.Trainer`. Several devices train together, each with its share of the cells; by
            default they share out the updates as well. See the page on several devices and machines.
        train_size, validation_size, shuffle_set_split
            Share of the cells to train on and to validate on (by default all others), drawn at random or in order.
            The first training decides; later ones keep its split.
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
            minibatch. ``history`` has it as ``batch_dependence``, and the best weights are those of the bound less the
            penalty, ``penalised_elbo``. Differences in composition between batches are penalised as well; see the
            page on integration.
        early_stopping_patience
            Steps without improvement before training ends, counted from the end of the warm-up; by default a quarter
            of the planned ones.
        seed
            Seed of the split, of the order of cells and of every random draw; the model's own by default.
        callbacks
            One Lightning callback or several; a list is not changed.
        enable_progress_bar
            Whether to show a bar, where there is a terminal.
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
            If an option is unknown.
        TrainingDivergedError
            If the objective becomes infinite or not a number.
        """
        from scvae_ext.train.fit import check_trainer_options, fit
        from scvae_ext.train.history import History
        from scvae_ext.train.processes import count_processes

        check_trainer_options(trainer_options, list(inspect.signature(self.train).parameters))
        source = self._own_source()
        seed = self.seed if seed is None else whole_number("seed", seed, least=0)
        batch_size = whole_number("batch_size", batch_size)
        # Training that goes on keeps its split, lest cells that were held out are trained on.
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
        self._require_batch_statistics(len(train) // n_processes, batch_size)
        max_steps = self._planned_steps(train, batch_size, n_processes, max_epochs, max_steps)
        options = {
            "learning_rate": learning_rate,
            "weight_decay": default_weight_decay(len(train)) if weight_decay is None else weight_decay,
            "max_kl_weight": max_kl_weight,
            **plan_options(plan_kwargs or {}),
        }
        plan = TrainingPlan(
            max_steps=max_steps,
            batch_size=batch_size,
            kl_warmup=0.0 if self.is_trained else kl_warmup,
            objective=objective,
            n_samples=n_samples,
            free_bits=free_bits,
            batch_penalty=batch_penalty,
            early_stopping=true_or_false("early_stopping", early_stopping),
            validate_every=steps_between_validations(len(validation), n_processes * batch_size),
            patience=max(1, max_steps // 4) if early_stopping_patience is None else early_stopping_patience,
            **options,
        )
        trainable = self._trainable(plan)
        callbacks = [] if callbacks is None else [*callbacks] if isinstance(callbacks, Sequence) else [callbacks]
        history = History(self._history_rows)
        self._weights_hash = None
        self._training_seed = seed
        self.train_indices, self.validation_indices, self.test_indices = split
        if not self.is_trained:
            self._initialise(source, train)

        def run(trainable: Trainable, plan: TrainingPlan) -> bool:
            interrupted: bool = fit(
                trainable,
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
            )
            return interrupted

        try:
            source.keep(validation)
            interrupted = run(trainable, plan)
            self.is_trained = True
            if not interrupted:
                cells = Cells(source, validation, self.device)
                self._train_further(run, replace(plan, kl_warmup=kl_warmup), cells, history)
        finally:
            source.keep(np.arange(0))
            self._history_rows = history.rows

    def _train_further(  # noqa: B027 (most models have nothing to do)
        self,
        run: Callable[[Trainable, TrainingPlan], bool],
        plan: TrainingPlan,
        held_out: Cells,
        history: "History",
    ) -> None:
        """Do what follows a training that was not interrupted."""

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
        return default_max_steps(self._own_source(), train, steps_per_epoch, n_processes)

    def save(self, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False) -> None:
        """Write the model to a folder, under a temporary name first: weights (safetensors), all else (JSON).

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Whether a model that is there may be replaced.
        save_anndata
            Whether to write the AnnData beside it, as ``adata.h5ad``.

        Raises
        ------
        FileExistsError
            If something is there already that may not be replaced.
        """
        from scvae_ext import __version__

        description = {
            "model_class": type(self).__name__,
            "version": __version__,
            "registry": self.registry.to_dict(),
            "options": self._options,
            "seed": self.seed,
            "training_seed": self._training_seed,
            "is_trained": self.is_trained,
            "weights": weights_hash(self.module),
            "cells": self._cells_hash,
            "history": self._history_rows,
            **self._described(),
            "split": {
                name: None if indices is None else indices.tolist()
                for name, indices in (
                    ("train", self.train_indices),
                    ("validation", self.validation_indices),
                    ("test", self.test_indices),
                )
            },
        }
        adata = self.adata if save_anndata else None
        write_model(dir_path, description, self.module.state_dict(), adata, overwrite=overwrite)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:
        """Read a saved model.

        Parameters
        ----------
        dir_path
            The folder given to :meth:`save`.
        adata
            AnnData to use from now on, matched by gene name; without one, getters need ``adata=...``.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If it is truncated, of another class, or not written by this package.
        """
        description, weights = read_model(dir_path)
        if description["model_class"] != cls.__name__:
            raise ValueError(
                f"{dir_path} holds a {description['model_class']}, not a {cls.__name__}: "
                f"load it with {description['model_class']}.load."
            )
        model = cls.__new__(cls)
        try:
            model._build(Registry.from_dict(description["registry"]), description["options"], description["seed"])
            model._restore(description, weights)
            model.module.load_state_dict(weights)
        except (RuntimeError, TypeError, KeyError) as error:
            raise ValueError(
                f"{dir_path} is damaged, or was written by a later release ({description.get('version')}): {error}."
            ) from error
        if weights_hash(model.module) != description["weights"]:
            raise ValueError(f"The weights in {dir_path} are damaged: their fingerprint is not the one that was saved.")
        model.is_trained = description["is_trained"]
        model._cells_hash = description["cells"]
        model._training_seed = description.get("training_seed")
        model._history_rows = description["history"]
        for name, indices in description["split"].items():
            setattr(model, f"{name}_indices", None if indices is None else np.asarray(indices, dtype=np.int64))
        if adata is not None:
            model.adata = adata
        return model

    def _described(self) -> dict[str, Any]:
        """Return what a kind of model has to save besides what all have."""
        return {}

    def _restore(  # noqa: B027 (most models have nothing to do)
        self, description: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> None:
        """Take over what :meth:`_described` saved, and shape the module for the weights."""

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        state = "trained" if self.is_trained else "not trained"
        return f"{type(self).__name__}({self.registry.n_genes} genes, {changed}), {state}"

    def _own_source(self) -> CellSource:
        """Return the cells of the model's AnnData, read anew where it was changed in place."""
        if self._source is None or self._fingerprint != fingerprint(self.adata, self.registry):
            self.adata = self.adata
        assert self._source is not None
        return self._source

    def _cells(
        self,
        adata: AnnData | None,
        indices: CellSelection | None,
        batch_size: int | None,
        fill_missing_genes: bool,
    ) -> tuple[AnnData, Cells]:
        """Return the AnnData that results go to, and its cells that were asked for."""
        self._require_trained()
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)
        if adata is None or adata is self._adata:
            adata, source = self.adata, self._own_source()
        else:
            source = align(adata, self.registry, fill_missing_genes=fill_missing_genes)
            self._require_valid(source)
        return adata, Cells(source, select_cells(indices, source.obs_names), self.device, batch_size)

    def _require_trained(self) -> None:
        if not self.is_trained:
            raise RuntimeError(
                f"The model has not been trained: call model.train() first, or {type(self).__name__}.load."
            )

    @abstractmethod
    def _require_valid(self, source: CellSource) -> None:
        """Raise where the values of another AnnData do not fit the likelihood."""

    def _write(
        self,
        adata: AnnData,
        slot: Any,
        key: str | None,
        values: np.ndarray | DaskArray,
        cells: Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
        columns: Sequence[str] | None = None,
    ) -> None:
        """Write a result for all cells; for a subset only where the user asked for that."""
        is_subset = not np.array_equal(cells.positions, np.arange(cells.source.n_cells))
        if key is None or (is_subset and not write_subset):
            return
        if not isinstance(key, str) or not key:
            raise ValueError(f"key_added={key!r} must be a name, or None to write nothing.")
        record = {**arguments, "n_cells": len(cells), "all_cells": not is_subset}
        write_result(adata, slot, key, values, cells.positions, self._provenance(record), columns)

    def _write_out(
        self,
        out: str | Path,
        overwrite: bool,
        adata: AnnData,
        pieces: Pieces,
        columns: Sequence[str],
        slot: tuple[str, str] | None,
        arguments: Mapping[str, Any],
    ) -> Path:
        """Write a result to a file of its own."""
        path = check_out(out, adata, overwrite=overwrite)
        positions = pieces.cells.positions
        all_cells = np.array_equal(positions, np.arange(pieces.cells.source.n_cells))
        record = {**arguments, "n_cells": len(positions), "all_cells": all_cells}
        return write_pieces(path, adata, pieces, columns, slot, self._provenance(record))

    def _write_expression(
        self,
        adata: AnnData,
        key: str | None,
        expression: np.ndarray | DaskArray,
        genes: Sequence[str],
        cells: Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Write expression as a layer, or as a data frame in ``obsm`` where its genes are not those of the AnnData."""
        if key is None:
            return
        order = pd.Index(genes).get_indexer(adata.var_names)
        if len(order) == len(genes) and (order >= 0).all():
            self._write(adata, "layers", key, expression[:, order], cells, write_subset, arguments)
        else:
            self._write(adata, "obsm", key, expression, cells, write_subset, arguments, genes)

    def _provenance(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        from scvae_ext import __version__

        if self._weights_hash is None:
            self._weights_hash = weights_hash(self.module)
        return {
            "version": __version__,
            "model": type(self).__name__,
            "options": self._options,
            "registry": self.registry.hash,
            "weights": self._weights_hash,
            "epochs": self._history_rows[-1]["epoch"] if self._history_rows else 0,
            "steps": self._history_rows[-1]["step"] if self._history_rows else 0,
            "seed": self.seed,
            "training_seed": self._training_seed,
            "arguments": dict(arguments),
        }


def _split_of(datamodule: "LightningDataModule", source: CellSource) -> _Split:
    """Return the training, validation and test cells that a data module names, each ``None`` where it does not."""
    train, validation, test = (
        None
        if (named := getattr(datamodule, f"{name}_indices", None)) is None
        else select_cells(named, source.obs_names)
        for name in ("train", "validation", "test")
    )
    return train, validation, test


def _plain(value: Any) -> Any:
    """Return Python's own numbers and lists, which JSON can hold and gives back as they were."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
