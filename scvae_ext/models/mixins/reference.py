"""Cells of new batches, mapped onto a model that was trained on others."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from scvae_ext.data import CellSource, Registry, add_batches, keep_shared_genes
from scvae_ext.data.names import shorten
from scvae_ext.likelihoods import COUNT_LIKELIHOODS
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.described import are_described, groups_of_states, standardised_elbo
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import true_or_false
from scvae_ext.modules import KeptReference, Trainable, copy_reference, start_new_batches

__all__ = ["ReferenceMixin"]

SHARE_WORTH_A_WARNING = 0.05


class ReferenceMixin(VAEModel):
    """Cells of new batches, mapped onto a model that was trained on others."""

    _excludes_novel: bool = True
    # Batches that the last training was of, and those that have had one; names of cells that it left out.
    _batches: Sequence[int] = ()
    _started: Sequence[int] = ()
    _novel: Sequence[str] = ()

    @classmethod
    def load_query_data(
        cls,
        adata: AnnData,
        reference_model: VAEModel | str | Path,
        *,
        drop_missing_genes: bool = False,
        exclude_novel: bool = True,
    ) -> Self:
        r"""Return a model that knows the batches of new cells beside those of a trained one, which is left as it is.

        What the reference has learned is kept: unless genes were dropped, cells of its batches have the latent
        representation, expression and ELBO in the new model that they have in the reference. :meth:`train` then trains
        what belongs to the new batches alone, on ``adata``:

        .. math:: \log \mu_{ng} = \log \ell_n + f_g(z_n, s) + \delta_{gs} - \text{normalisation}, \qquad
                  q(z_n \mid x_n, s)

        their columns in the layers of decoder :math:`f` and encoder (or their embeddings), dispersions where each batch
        has its own, and :math:`\delta_{gs} \sim \mathcal N(0, 0.5^2)`, by which each new batch shifts the log mean of
        each gene. Columns start, and have their prior, at the mean over the batches of the reference. Those of the
        encoder are zero where it saw none: before training, the state of a new cell is what the reference makes of it.

        Cells that the reference does not describe, of a type that it lacks for example, would pass for an effect of
        their batch. :meth:`train` therefore starts shifts at the median over groups of cells, and then leaves out cells
        whose ELBO is far below that of cells drawn at their own posterior: three times the spread of their batch below
        its median. :attr:`novel_cells` names them. That takes the other cells for the greater part.

        Source: Lotfollahi et al., Nature Biotechnology 40, 121 (2022), who train columns; the shifts of genes, and
        leaving novel cells out, are added here.

        Parameters
        ----------
        adata
            Cells of at least one batch that the reference does not know, with raw counts and all columns of ``obs``
            that the reference was set up with. It need not be set up, and is not changed.
        reference_model
            A trained model, or the folder of a saved one.
        drop_missing_genes
            Whether genes of the reference that ``adata`` lacks are left out of the new model, with a warning, instead
            of an error. The encoder takes them for genes without counts, and the expression of the others sums to one.
        exclude_novel
            Whether cells that the reference does not describe are left out of training. With a data module of your own,
            or log-normalised values, none is.

        Returns
        -------
        SCVAE or another model with this method
            Ready for getters, and for :meth:`train`. With ``model.adata = reference_model.adata`` it compares new cells
            with those of the reference, as in :meth:`get_novelty` and :meth:`get_cell_uncertainty`. What has to train a
            second model, such as intervals, is refused.

        Raises
        ------
        ValueError
            If ``adata`` has no new batch, lacks genes or columns, or its values cannot be used; if the reference was
            set up without batches or with size factors, or has embeddings of batches that a linear decoder reads.
        RuntimeError
            If the reference has not been trained, or was mapped itself and not trained since.

        Warns
        -----
        UserWarning
            If genes were left out, or proteins or peaks were not measured in a new batch.

        Examples
        --------
        >>> import scvae_ext as sv
        >>> adata = sv.datasets.synthetic_counts(n_cells=300, n_genes=50, n_batches=3)
        >>> is_new = adata.obs["batch"] == "batch_2"
        >>> reference, query = adata[~is_new].copy(), adata[is_new].copy()
        >>> sv.SCVAE.setup_anndata(reference, batch_key="batch")
        >>> model = sv.SCVAE(reference, n_latent=5)
        >>> model.train(max_epochs=2, enable_progress_bar=False)
        >>> mapped = sv.SCVAE.load_query_data(query, model)
        >>> mapped.train(max_epochs=2, enable_progress_bar=False)
        >>> mapped.get_latent_representation().shape
        (100, 5)
        """
        reference = cls.load(reference_model) if isinstance(reference_model, str | Path) else reference_model
        if type(reference) is not cls:
            name = type(reference).__name__
            raise ValueError(f"reference_model is a {name}, not a {cls.__name__}: call {name}.load_query_data.")
        reference._require_trained()
        if isinstance(reference, ReferenceMixin) and reference._has_untrained_batches:
            raise RuntimeError(
                "reference_model was mapped onto a reference and not trained on all of its new batches since: call "
                "train() on it first, or map all new batches at once."
            )
        known = reference.registry
        registry, genes = keep_shared_genes(
            adata, add_batches(adata, known), drop_missing=true_or_false("drop_missing_genes", drop_missing_genes)
        )
        model = cls.__new__(cls)
        model._build(registry, _extended_options(reference._options, known, registry), reference.seed)
        model._restore(reference._described(), reference.module.state_dict())
        model._n_reference_batches = known.n_batches
        model._started, model._novel = [], []
        model._excludes_novel = true_or_false("exclude_novel", exclude_novel)
        copy_reference(reference.module, model.module, torch.from_numpy(genes))
        model.module.to(reference.device).eval()
        model.is_trained = True
        model.adata = adata
        source = model._own_source()
        new = range(known.n_batches, registry.n_batches)
        model.module.initialise_library(source.library_size, source.batch, new)
        return model

    @property
    def _has_untrained_batches(self) -> bool:
        first = self._n_reference_batches
        return first is not None and not set(range(first, self.registry.n_batches)) <= set(self._started)

    @property
    def novel_cells(self) -> pd.Index:
        """Names of the new cells that the last training of a mapped model left out, as unlike the reference."""
        return pd.Index(self._novel)

    @override
    def _trained_cells(
        self,
        source: CellSource,
        train: Int[np.ndarray, "train"],
        validation: Int[np.ndarray, "validation"],
        *,
        may_leave_out: bool,
    ) -> tuple[Int[np.ndarray, "trained"], Int[np.ndarray, "scored"]]:
        n_reference = self._n_reference_batches
        if n_reference is None:
            return train, validation
        batch = source.batch.numpy()
        self._batches = [int(code) for code in np.unique(batch[train]) if code >= n_reference]
        if not self._batches:
            names = shorten(self.registry.batch_categories[n_reference:])
            raise ValueError(
                "None of the cells to train on is of a new batch, and nothing else is trained: set model.adata to an "
                f"AnnData that has cells of {names}."
            )
        fresh = [code for code in self._batches if code not in self._started]
        if fresh:
            self.module.initialise_library(source.library_size[train], source.batch[train], fresh)
            self._start(source, train, fresh, *self._groups(source, train))
        of_new = np.isin(batch, self._batches)
        asked = np.concatenate([train, validation])
        asked = asked[of_new[asked]]
        novel = np.zeros(source.n_cells, dtype=bool)
        if may_leave_out and self._excludes_novel and self.module.likelihood.for_counts:
            with evaluating(self.module):
                z = standardised_elbo(self.module, Cells(source, asked, self.device), self.seed)
            novel[asked] = ~are_described(z, batch[asked])
        kept = train[~novel[train]]
        if fresh:
            self._start(source, kept, fresh, np.zeros(len(kept), dtype=np.int64), 1)
            self._started = [*self._started, *fresh]
        self._novel = source.obs_names[novel].tolist()
        self._tell_of_novel(len(asked))
        return kept, validation[~novel[validation]]

    def _groups(self, source: CellSource, train: Int[np.ndarray, "train"]) -> tuple[Int[np.ndarray, "train"], int]:
        with evaluating(self.module):
            return groups_of_states(self.module, Cells(source, train, self.device), self.seed)

    def _start(
        self,
        source: CellSource,
        cells: Int[np.ndarray, "cells"],
        batches: Sequence[int],
        group: Int[np.ndarray, "cells"],
        n_groups: int,
    ) -> None:
        """Start new batches from counts observed and expected."""
        assert self._n_reference_batches is not None
        groups = torch.from_numpy(group)
        minibatches = ((minibatch, groups[rows]) for rows, minibatch in Cells(source, cells, self.device))
        with evaluating(self.module):
            start_new_batches(self.module, minibatches, batches, self._n_reference_batches, n_groups)

    def _tell_of_novel(self, n_asked: int) -> None:
        share = len(self._novel) / max(1, n_asked)
        if share > SHARE_WORTH_A_WARNING:
            warnings.warn(
                f"{len(self._novel)} of {n_asked} new cells ({share:.0%}) are unlike all that the reference describes, "
                "whatever shifts of genes the new batch may have. They are left out of training, lest they pass for an "
                "effect of the batch; model.novel_cells names them. If most new cells are of types that the reference "
                "lacks, train a model on the cells of both.",
                UserWarning,
                stacklevel=4,
            )

    @override
    def _view(self, trainable: Trainable) -> Trainable:
        if self._n_reference_batches is None:
            return trainable
        return KeptReference(trainable, self.module, self._batches, self._n_reference_batches)

    @override
    def _weight_decay(self, given: float | None, n_train: int) -> float:
        if self._n_reference_batches is None:
            return super()._weight_decay(given, n_train)
        if given:
            raise ValueError(
                f"weight_decay={given!r} would shrink what the reference has learned: leave it out. Shifts of genes "
                "have a prior of their own."
            )
        return 0.0

    @override
    def _is_continued(self, validation: Int[np.ndarray, "validation"] | None, maximised: tuple[float, float]) -> bool:
        if self._n_reference_batches is not None and not self._started:
            # No cell of a new batch has been trained on.
            return maximised == (1.0, 0.0)
        return super()._is_continued(validation, maximised)

    @override
    def _described(self) -> dict[str, Any]:
        mapping = {
            "n_reference_batches": self._n_reference_batches,
            "started": self._started,
            "novel": self._novel,
            "excludes_novel": self._excludes_novel,
        }
        return {**super()._described(), **({} if self._n_reference_batches is None else {"mapping": mapping})}

    @override
    def _restore(self, description: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        super()._restore(description, weights)
        mapping = description.get("mapping")
        if mapping is not None:
            self._n_reference_batches = mapping["n_reference_batches"]
            self._started, self._novel = list(mapping["started"]), list(mapping["novel"])
            self._excludes_novel = mapping["excludes_novel"]


def _extended_options(options: Mapping[str, Any], known: Registry, registry: Registry) -> dict[str, Any]:
    """Return the options of a model that knows more batches."""
    extended = dict(options)
    if known.size_factor_key is not None and options["gene_likelihood"] in COUNT_LIKELIHOODS:
        raise ValueError(
            f"The reference has size factors (size_factor_key={known.size_factor_key!r}), with which a batch does not "
            "shift the log mean of a gene: train it without them, with the library size in their place."
        )
    if known.n_batches == 1:
        # Where there is one batch, there is no embedding of it.
        extended["batch_representation"] = "one-hot"
    if extended["batch_representation"] == "one-hot":
        # Columns of new batches are all that an encoder which saw no covariates will see of them.
        extended["encode_covariates"] = True
    elif extended.get("decoder") == "linear":
        raise ValueError(
            'The reference has batch_representation="embedding" and decoder="linear", so that new batches could not '
            'shift the mean of a gene: train it with batch_representation="one-hot".'
        )
    n_new = registry.n_batches - known.n_batches
    return {**extended, "n_shifted_batches": extended.get("n_shifted_batches", 0) + n_new}
