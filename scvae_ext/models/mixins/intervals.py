"""What intervals of expression need: a second model, by which they are calibrated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.analysis import IntervalCalibration
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.intervals import (
    Replicate,
    in_batches,
    measured_calibration,
    refuse_without_counts,
    simulate_replicate,
)
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.results import cells_hash, weights_hash

__all__ = ["ENDS", "IntervalMixin"]

ENDS = ("_lower", "_median", "_upper")
"""What is appended to the key of an interval."""


class IntervalMixin(VAEModel):
    """What intervals of expression need: a second model, by which they are calibrated."""

    def calibrate_intervals(
        self, *, train_options: Mapping[str, Any] | None = None, seed: int | None = None
    ) -> IntervalCalibration:
        r"""Find out how wide intervals of expression must be, by a parametric bootstrap.

        The spread of :math:`q(z \mid x)` alone is too narrow: it leaves out that the decoder was estimated, that it is
        shrunk, and that encoder and family of posteriors are approximate. Therefore counts are simulated from this
        model, a state drawn from each cell's posterior; a model with the same options is trained on them; and its
        expression is compared with the one that they were simulated from. The errors, in units of the second model's
        own spread and by bins of genes, say how wide intervals must be; see
        :func:`~scvae_ext.analysis.calibrate_intervals`.

        It measures errors of estimation, not those of a wrong model: variation between cells that neither latent state
        nor likelihood can express is missing. On small data the simulated truth is smoother than the real one, and
        intervals hold a few per cent less than they say. Methods that need it call this; the result is kept until the
        model is trained again or has other cells, and not saved.

        Parameters
        ----------
        train_options
            Arguments of :meth:`train` for the second training, which should be those of the first. By default as many
            steps as the model itself was trained for.
        seed
            Seed of the simulation and of the second model, whose initial weights must be others; one more than that of
            the model where ``None``.

        Returns
        -------
        IntervalCalibration
            For expression in the setting in which each cell was observed.

        Raises
        ------
        ValueError
            If the likelihood is not one of counts.
        """
        adata, cells = self._cells(None, None, None, False)
        refuse_without_counts(self.module)
        registry, seed = self.registry, self.seed + 1 if seed is None else whole_number("seed", seed, least=0)
        with evaluating(self.module):
            simulated, latent = simulate_replicate(self.module, cells, registry, in_pandas(adata.obs), seed)
        # Not set up anew: names and scales of the covariates are those of the data, and genes may be without counts.
        twin = self._sibling(simulated, self._options, seed)
        given = {"enable_progress_bar": False, **(train_options or {})}
        if "max_epochs" not in given and self._history_rows:
            # Steps with residual factors come on top, half as many.
            with_factors = 0 if self._residual_test is None else self._residual_test.n_steps
            given.setdefault("max_steps", int(self._history_rows[-1]["step"]) - with_factors)
        twin.train(**given)
        twin._require_whole_training()
        twin.to_device(self.device)
        of_twin = twin._cells(None, None, None, False)[1]
        mean_counts = np.asarray(simulated.X.mean(axis=0), dtype=np.float64).ravel()
        made_from = weights_hash(self.module), cells_hash(cells.source)
        self._replicate = Replicate(*made_from, twin.module, of_twin, latent, mean_counts)
        with evaluating(self.module):
            return measured_calibration(self.module, self._replicate, in_batches([]))

    def _refitted(self) -> Replicate:
        """Return the second model that intervals are calibrated by, trained now where weights and cells have none."""
        wanted = weights_hash(self.module), cells_hash(self._own_source())
        if self._replicate is None or (self._replicate.weights, self._replicate.simulated_from) != wanted:
            self.calibrate_intervals()
        assert self._replicate is not None
        self._replicate = self._replicate.on(self.device)
        return self._replicate

    def _write_ends(
        self,
        adata: AnnData,
        key: str | None,
        ends: Sequence[Float[np.ndarray, "cells chosen"]],
        names: Sequence[str],
        cells: Cells,
        write_subset: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Write lower end, median and upper end of an interval."""
        for suffix, values in zip(ENDS, ends, strict=True):
            of_end = None if key is None else f"{key}{suffix}"
            self._write_expression(adata, of_end, values, names, cells, write_subset, arguments)
