"""How sure the model is of cells, and how unlike its own they are."""

from typing import Any

import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import Novelty
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import evaluating
from scvae_ext.models.groups import select_labels
from scvae_ext.models.intervals import refuse_without_counts
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.novelty import novelty_of_cells
from scvae_ext.models.options import positive_number, whole_number
from scvae_ext.models.query import CellSelection
from scvae_ext.models.uncertainty import cell_uncertainty

__all__ = ["UncertaintyMixin"]


class UncertaintyMixin(VAEModel):
    """How sure the model is of cells, and how unlike its own they are."""

    def get_cell_uncertainty(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        labels_key: str | None = None,
        n_neighbors: int = 15,
        n_samples: int = 30,
        num_cells_posterior: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_uncertainty",
        write_subset: bool = False,
    ) -> pd.DataFrame:
        r"""Return what the counts of each cell leave open about its state, and about its label.

        The posterior is the encoder's, which has learned from the cells of its training how depth narrows it: of cells
        that are much shallower than those it is too sure. ``laplace_entropy`` asks the decoder alone.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`. A cell of another AnnData is one of the model's own where it has
            the same name and the same counts.
        labels_key
            Column of ``obs`` of the model's AnnData with labels of its cells; ``None`` leaves out what is said of them.
        n_neighbors
            Neighbours of each draw, among the labelled cells of the model's AnnData.
        n_samples, seed
            Draws of each cell's posterior for the labels, and their seed.
        num_cells_posterior
            Labelled cells among which neighbours are looked for, drawn at random where there are more; all where
            ``None``. Time grows with the cells asked for, times between the root and all of these; labels of few cells
            lose theirs where fewer are drawn than neighbours are asked for.
        key_added
            Prefix of the columns of ``adata.obs`` (all but ``label``); ``None`` writes nothing.

        Returns
        -------
        pandas.DataFrame
            A row a cell. ``entropy``: that of the posterior, :math:`\frac12\sum_d\log(2\pi e\,\sigma_d^2)`, nats;
            higher is less sure. ``information``: by how much the posterior is narrower than the spread of all cells of
            the model's AnnData, nats; about zero where the counts say nothing. ``laplace_entropy``: entropy in nats
            of the Gaussian whose precision is the Fisher information of the decoder at the posterior mean, and that of
            the prior: one for the standard normal, and for a learned one that of its Gaussians, averaged by how
            probably the posterior mean is of each. With labels ``label_entropy``: entropy in nats of the labels among
            the neighbours of draws of the posterior, the cell itself left out; ``label_probability`` and ``label``:
            share of the most frequent of them, and which it is.

        Raises
        ------
        ValueError
            If the model has no AnnData, the column does not exist, or too few cells have a label.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        known = self._cells(None, None, batch_size, fill_missing_genes)[1]
        labels = None if labels_key is None else select_labels(in_pandas(self.adata.obs), labels_key)
        numbers: dict[str, Any] = {
            "n_neighbors": whole_number("n_neighbors", n_neighbors),
            "n_samples": whole_number("n_samples", n_samples),
            "num_cells_posterior": _most_cells(num_cells_posterior),
            "seed": whole_number("seed", seed, least=0),
        }
        self._require_free("obs", key_added, "_entropy")
        with evaluating(self.module):
            own = self._own_positions(adata, cells, known.source)
            frame = cell_uncertainty(self.module, cells, known, labels, own, **numbers)
        record = {"labels_key": labels_key, **numbers}
        columns = {str(name): frame[name].to_numpy() for name in frame if name != "label"}
        self._write_columns(adata, key_added, columns, cells, write_subset, record)
        return frame

    def get_novelty(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        *,
        n_replicates: int = 50,
        n_samples: int = 5,
        num_cells_posterior: int | None = 10_000,
        bandwidth: float = 1.0,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_novelty",
        write_subset: bool = False,
    ) -> Novelty:
        r"""Ask of each cell how improbable it is, by its counts and by its state.

        *Counts.* The ELBO, an estimate of :math:`\log p(x)`, falls with the number of counts, whatever the cell. It is
        compared with that of ``n_replicates`` cells drawn from the model with the cell's total count, batch and
        covariates, and states drawn from the posteriors of the model's cells
        (:func:`~scvae_ext.analysis.replicate_test`); known labels play no part. With size factors the drawn cells have
        the cell's factor, and totals of their own. *State.* The density of the cell's state among the cells of the
        model's AnnData, itself left out, as in :meth:`differential_abundance`; p is its rank among theirs.

        Time grows with the cells that are asked for, and with those that the model knows times all of these; of the
        latter no more than ``num_cells_posterior`` are looked at.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`. What is drawn depends on them. A cell of another AnnData is one
            of the model's own where it has the same name and the same counts.
        n_replicates
            Cells drawn for each cell, ten at least; ``elbo_p`` is no smaller than 1 / (``n_replicates`` + 1).
        n_samples
            Samples of the posterior for each ELBO.
        num_cells_posterior
            Cells of the model's AnnData that go into the density, among which p is a rank, and from whose states
            replicates are drawn; drawn at random where there are more, and all where ``None``. ``latent_p`` is no
            smaller than 1 / (``num_cells_posterior`` + 1).
        bandwidth
            As for :meth:`differential_abundance`.
        seed
            Seed of all draws.
        key_added
            Prefix of the columns of ``adata.obs``; ``None`` writes nothing.

        Returns
        -------
        Novelty
            ``elbo``, ``expected_elbo`` and ``latent_log_density`` in nats, ``elbo_z`` in standard deviations,
            ``elbo_p``, ``latent_p`` and ``p``, twice the smaller of the two. A low z, density or p is novel.

        Raises
        ------
        ValueError
            If the model has no AnnData or no likelihood of counts, or ``n_replicates`` is below ten.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        known = self._cells(None, None, batch_size, fill_missing_genes)[1]
        numbers: dict[str, Any] = {
            "n_replicates": whole_number("n_replicates", n_replicates, least=10),
            "n_samples": whole_number("n_samples", n_samples),
            "num_cells_posterior": _most_cells(num_cells_posterior),
            "bandwidth": positive_number("bandwidth", bandwidth),
            "seed": whole_number("seed", seed, least=0),
        }
        self._require_free("obs", key_added, "_p")
        with evaluating(self.module):
            own = self._own_positions(adata, cells, known.source)
            result = novelty_of_cells(self.module, cells, known, own, **numbers)
        frame = result.to_frame()
        columns = {str(name): frame[name].to_numpy() for name in frame}
        self._write_columns(adata, key_added, columns, cells, write_subset, numbers)
        return result


def _most_cells(given: int | None) -> int | None:
    return None if given is None else whole_number("num_cells_posterior", given)
