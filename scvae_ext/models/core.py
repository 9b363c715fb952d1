"""What every model is made of: its module, the registry of its data, and the AnnData that results go to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from anndata.compat import DaskArray
from jaxtyping import Int

from scvae_ext.data import CellSource, Registry, align, read_registry, setup_anndata
from scvae_ext.data.changes import SeenCounts
from scvae_ext.data.fields import Layer
from scvae_ext.data.validation import changed_counts
from scvae_ext.models.cells import Cells
from scvae_ext.models.options import whole_number
from scvae_ext.models.output import check_out, write_pieces
from scvae_ext.models.pieces import Pieces
from scvae_ext.models.query import CellSelection, select_cells
from scvae_ext.models.results import (
    expression_slot,
    fingerprint,
    names_hash,
    require_free,
    require_key,
    weights_hash,
    write_result,
)
from scvae_ext.random_state import seeded

if TYPE_CHECKING:
    from scvae_ext.modules import VAE, DeterministicAutoencoder

__all__ = ["ModelCore"]


class ModelCore(ABC):
    """A module, the registry of the data that it is for, and the AnnData that results go to."""

    latent_key: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    """What of the registry's further kinds of values, ``"proteins"`` and ``"peaks"``, the model reads."""
    module: "VAE | DeterministicAutoencoder"
    _n_reference_batches: int | None = None
    """Number of batches of the reference that the model was mapped onto; ``None`` where there is none."""

    def __init__(self, adata: AnnData, options: Mapping[str, Any], seed: int) -> None:
        registry = read_registry(adata)
        # What was set up for another model is none of this one's business.
        others: dict[str, Any] = {name: None for name in ("proteins", "peaks") if name not in self.reads}
        self._build(replace(registry, **others), options, seed)
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
        self._seen: SeenCounts | None = None
        self._cells_hash: str | None = None
        self._history_rows: list[dict[str, float]] = []
        self._weights_hash: str | None = None
        self._training_seed: int | None = None
        self._is_interrupted = False
        # Weight of the divergence and free bits of the last training.
        self._maximised: tuple[float, float] | None = None
        self.is_trained = False
        self.train_indices: Int[np.ndarray, train] | None = None
        self.validation_indices: Int[np.ndarray, validation] | None = None
        self.test_indices: Int[np.ndarray, test] | None = None
        with seeded(self.seed):
            self.module = self._make_module(registry, self._options)
        self.module.eval()

    def _sibling(self, adata: AnnData, options: Mapping[str, Any], seed: int) -> Self:
        """Return an untrained model of the same kind and registry, however the AnnData may have been set up since."""
        self._require_whole_data()
        sibling = type(self).__new__(type(self))
        sibling._build(self.registry, options, seed)
        sibling.adata = adata
        return sibling

    def _require_whole_data(self) -> None:
        """Raise where the model was not learned from its AnnData alone, so that no other can be trained like it."""
        if self._n_reference_batches is not None:
            raise ValueError(
                "This asks for a second model that is trained like the first, but most of this one was learned from "
                "cells of its reference: train a model on the cells of both, or leave out what needs a second one "
                "(intervals, refits)."
            )

    @abstractmethod
    def _make_module(self, registry: Registry, options: Mapping[str, Any]) -> "VAE | DeterministicAutoencoder":
        """Build the module for data of this registry."""

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

        It is matched anew where it was filtered, sorted or relabelled in place, or its matrix of counts replaced by
        another. A matrix in memory whose values were changed in place is an error, until the AnnData is set again, and
        so is a view whose counts became others; a matrix on disk is not read again. With other cells than before, the
        split into training and held-out cells is forgotten.
        """
        if self._adata is None:
            raise ValueError("The model was loaded without an AnnData: pass adata=..., or set model.adata = adata.")
        return self._adata

    @adata.setter
    def adata(self, adata: AnnData) -> None:
        self._source, self._adata, self._fingerprint = self._align(adata), adata, fingerprint(adata, self.registry)
        self._seen = SeenCounts(adata, Layer(self.registry.layer))
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

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        state = "trained" if self.is_trained else "not trained"
        return f"{type(self).__name__}({self.registry.n_genes} genes, {changed}), {state}"

    @property
    def _needs_labels(self) -> bool:
        """Whether anything is computed from labels, so that every cell must have one that was there at set-up."""
        return bool(self._options.get("dispersion") == "gene-label")

    def _align(self, adata: AnnData, *, fill_missing_genes: bool = False) -> CellSource:
        source = align(adata, self.registry, fill_missing_genes=fill_missing_genes, labels_matter=self._needs_labels)
        self._require_valid(source)
        return source

    def _own_source(self, *, fill_missing_genes: bool = False) -> CellSource:
        """Return the cells of the model's AnnData, read anew where it was changed in place."""
        adata = self.adata
        assert self._source is not None
        assert self._seen is not None
        # Counts first: where a cell was renamed as well, it is the new ones that would be read below.
        state = self._seen.state(adata)
        if state == "changed" and not self._has_same_counts(adata, self._source):
            raise changed_counts(Layer(self.registry.layer).where, is_view=adata.is_view)
        if state == "same" and self._fingerprint == fingerprint(adata, self.registry):
            return self._source
        if fill_missing_genes and not set(self.registry.var_names) <= set(adata.var_names):
            # Not kept: the next getter has to ask for it as well.
            return self._align(adata, fill_missing_genes=True)
        self.adata = adata
        return self._source

    def _has_same_counts(self, adata: AnnData, source: CellSource) -> bool:
        """Return whether a matrix that was written to, by sorting its indices for example, still holds the counts."""
        try:
            return align(adata, self.registry, labels_matter=False).has_counts_of(source)
        except (IndexError, ValueError):
            return False

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
            adata, source = self.adata, self._own_source(fill_missing_genes=fill_missing_genes)
        else:
            source = self._align(adata, fill_missing_genes=fill_missing_genes)
        return adata, Cells(source, select_cells(indices, source.obs_names), self.device, batch_size)

    def _require_trained(self) -> None:
        if not self.is_trained:
            raise RuntimeError(
                f"The model has not been trained: call model.train() first, or {type(self).__name__}.load."
            )

    @abstractmethod
    def _require_valid(self, source: CellSource) -> None:
        """Raise where the values of another AnnData do not fit the likelihood."""

    def _gene_names(self, genes: Int[np.ndarray, "chosen"] | None) -> list[str]:
        """Return the names of some genes, of all where ``None``."""
        names = self.registry.var_names
        return list(names) if genes is None else [names[gene] for gene in genes]

    def _require_free(self, slot: str, key: str | None, *suffixes: str) -> None:
        """Raise where a result, with any of the suffixes if there are some, would replace what the model reads."""
        require_free(self.registry, slot, key, suffixes or ("",))

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
        categories: Sequence[str] | None = None,
    ) -> None:
        """Write a result for all cells; for a subset only where the user asked for that."""
        is_subset = not np.array_equal(cells.positions, np.arange(cells.source.n_cells))
        if key is None or (is_subset and not write_subset):
            return
        self._require_free(slot, key)
        record = {**arguments, "n_cells": len(cells), "all_cells": not is_subset}
        write_result(adata, slot, key, values, cells.positions, self._provenance(record), columns, categories)

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
        if slot is not None:
            require_key(slot[1])
        path = check_out(out, adata, self.registry.layer, overwrite=overwrite)
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
        if expression_slot(adata, genes) == "layers":
            order = pd.Index(genes).get_indexer(adata.var_names)
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


def _plain(value: Any) -> Any:
    """Return Python's own numbers and lists, which JSON can hold and gives back as they were."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
