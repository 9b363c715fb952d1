"""Models as folders on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from anndata import AnnData
from torch import Tensor

from scvae_ext.data import Registry
from scvae_ext.models.core import ModelCore
from scvae_ext.models.results import weights_hash
from scvae_ext.models.saving import read_model, write_model

__all__ = ["PersistenceMixin"]


class PersistenceMixin(ModelCore):
    """Saving and loading of a model."""

    def save(self, dir_path: str | Path, overwrite: bool = False, save_anndata: bool = False) -> None:
        """Write the model to a folder, under a temporary name first: weights (safetensors), all else (JSON).

        Parameters
        ----------
        dir_path
            The folder.
        overwrite
            Whether a model that is there may be replaced. Other files in its folder stay. An ``adata.h5ad`` from before
            does too, unless ``save_anndata`` writes a new one, or the new model is of other cells or genes.
        save_anndata
            Whether to write the AnnData beside it, as ``adata.h5ad``; one on disk is copied as it is read.

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
            "maximised": self._maximised,
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
        maximised = description.get("maximised")
        model._maximised = None if maximised is None else (maximised[0], maximised[1])
        model._history_rows = description["history"]
        for name, indices in description["split"].items():
            setattr(model, f"{name}_indices", None if indices is None else np.asarray(indices, dtype=np.int64))
        if adata is not None:
            model.adata = adata
        return model

    def _described(self) -> dict[str, Any]:
        """Return what a kind of model has to save besides what all have."""
        return {}

    def _restore(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`_described` saved, and shape the module for the weights."""
