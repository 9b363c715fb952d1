"""What cells would show under other covariates."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import Counterfactual, CounterfactualEffect, interval_level
from scvae_ext.models.abducted_counts import abducted_counts
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.counterfactual import effect_of_settings, groups_of_cells, overlap_with
from scvae_ext.models.intervals import expression_interval, measured_calibration, refuse_without_counts
from scvae_ext.models.mixins.intervals import ENDS, IntervalMixin
from scvae_ext.models.options import positive_number, whole_number
from scvae_ext.models.query import CellSelection, GeneSelection, select_genes
from scvae_ext.models.results import expression_slot
from scvae_ext.models.settings import read_setting
from scvae_ext.models.state_shift import GroupedStates, grouped_states, state_shift

__all__ = ["CounterfactualMixin"]


class CounterfactualMixin(IntervalMixin):
    """What cells would show under other covariates."""

    def counterfactual(
        self,
        set: Mapping[str, str | float],
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        gene_list: GeneSelection | None = None,
        *,
        library_size: float | Literal["latent"] = 1.0,
        level: float = 0.9,
        shift_within: str | None = None,
        n_samples: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
        key_added: str | None = "scvae_counterfactual",
        write_subset: bool = False,
    ) -> Counterfactual:
        r"""Predict what cells would express if covariates were set to other values.

        The state z and the noise u of each cell are abducted from what was seen, covariates are set in the decoder, and
        expression and counts predicted (Pearl, Causality, 2009, section 7.1):

        .. math:: z \sim q(z \mid x), \quad u \mid x, z \sim \operatorname{Gamma}(\theta + x, \theta + \ell\rho), \quad
                  (\rho', \theta', \pi') = \operatorname{decoder}(z, s'), \quad
                  u' = F_{\theta'}^{-1}(F_\theta(u)), \quad x' \mid u' \sim \operatorname{Poisson}(\ell \rho' u')

        with :math:`F_\theta` the distribution function of :math:`\operatorname{Gamma}(\theta, \theta)`: noise keeps its
        rank, and is the same where the dispersion is. Molecules that were seen are kept where the rate does not fall,
        and thinned where it does. Which zeros are extra ones is abducted too; as many are kept, lifted or added as
        :math:`\pi'` says. Library sizes stay those of the cells.

        This holds if covariates act as interventions would, with nothing unmeasured behind both setting and expression,
        and if z is what the intervention leaves as it is. Two things can be checked and are: whether each cell's state
        was seen under the setting, and whether z knows the setting (:func:`~scvae_ext.analysis.setting_overlap`).

        Parameters
        ----------
        set
            Value by covariate: the batch key, a categorical or a continuous covariate. Others stay as observed.
        adata, indices, batch_size, fill_missing_genes, write_subset
            As for :meth:`get_latent_representation`.
        gene_list, library_size
            As for :meth:`get_normalized_expression`.
        level
            Share of true values that intervals of expression are to hold, as :meth:`calibrate_intervals` finds it: the
            first call after a training trains a second model.
        shift_within
            Column of ``adata.obs`` with groups of comparable cells, cell types for example. States are then moved by
            the mean difference between those of a group under the setting and those under the cell's own: what the
            state knows of the setting is carried over as well (latent arithmetic, as in Lotfollahi et al., Nature
            Methods 16, 715, 2019). Cells of a group that was not seen under both get an average over the groups that
            were, in which those with like states weigh most. Intervals do not hold the error of that shift.
        n_samples, seed
            Number of draws of the counts, and their seed.
        key_added
            Key of ``adata.layers`` (``adata.obsm`` where only some genes are asked for) for ``_lower``, ``_median`` and
            ``_upper``, and of ``adata.obs`` for ``_supported``; ``None`` writes nothing.

        Returns
        -------
        Counterfactual
            Expression with intervals, draws of counts, and the checks.

        Raises
        ------
        ValueError
            If a covariate or category is unknown; the message lists what exists.

        Examples
        --------
        >>> import scvae_ext as sv
        >>> adata = sv.datasets.synthetic_counts(200, 50, n_batches=2)
        >>> sv.SCVAE.setup_anndata(adata, batch_key="batch")
        >>> model = sv.SCVAE(adata)
        >>> model.train(max_epochs=5, enable_progress_bar=False)
        >>> model.counterfactual({"batch": "batch_1"}).median.shape
        (200, 50)
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        setting = read_setting("set", set, self.registry)
        genes = select_genes(gene_list, self.registry.var_names)
        depth: float | Literal["latent"] = (
            "latent" if library_size == "latent" else positive_number("library_size", library_size)
        )
        level, n_samples = interval_level(level), whole_number("n_samples", n_samples)
        seed = whole_number("seed", seed, least=0)
        names = self._gene_names(genes)
        self._require_free(expression_slot(adata, names), key_added, *ENDS)
        self._require_free("obs", key_added, "_supported")
        replicate, own = self._refitted(), self._cells(None, None, None, fill_missing_genes)[1]
        with evaluating(self.module):
            calibration = measured_calibration(self.module, replicate, setting.targets)
            shift = None
            if shift_within is not None:
                known, asked = self._comparable(own, adata, cells, shift_within)
                shift = state_shift(known, setting, asked, cells.positions)
            ends = expression_interval(self.module, cells, setting.targets, genes, depth, calibration, level, shift)
            counts = abducted_counts(self.module, cells, setting, genes, n_samples, seed, shift)
            shifts = None if shift is None else [shift]
            overlap = overlap_with(self.module, own, [setting], cells, seed, shifts)[0]
        record = {"set": dict(set), "level": level, "library_size": depth, "shift_within": shift_within}
        self._write_ends(adata, key_added, ends, names, cells, write_subset, record)
        if key_added is not None:
            supported = overlap.is_supported.astype(np.float32)
            self._write(adata, "obs", f"{key_added}_supported", supported, cells, write_subset, record)
        obs_names = cells.source.obs_names[cells.positions]
        return Counterfactual(dict(set), *ends, level, counts, overlap, obs_names, pd.Index(names))

    def counterfactual_effect(
        self,
        control: Mapping[str, str | float],
        treated: Mapping[str, str | float],
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        gene_list: GeneSelection | None = None,
        *,
        level: float = 0.9,
        shift_within: str | None = None,
        n_samples: int = 10,
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> CounterfactualEffect:
        r"""Compare the expression of the same cells under two settings, gene by gene.

        .. math:: \text{lfc}_g = \log_2 \frac{\sum_n \mathbb E_{q(z_n \mid x_n)}[\rho_g(z_n, s_\text{treated})]}
                  {\sum_n \mathbb E_{q(z_n \mid x_n)}[\rho_g(z_n, s_\text{control})]}

        over the cells of a group, whatever setting they were observed in. Intervals hold the effect on these cells, not
        that on others of their kind; they are as wide as the errors of a second model that is fitted to counts
        simulated from this one, by bins of genes, for the same cells where these are the model's own (by name and
        counts), for all of those otherwise. Assumptions and checks are those of :meth:`counterfactual`.

        Parameters
        ----------
        control, treated
            Value by covariate, as for :meth:`counterfactual`; the same covariates in both.
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        groupby
            Column of ``adata.obs`` with groups to compare within; all cells together where ``None``.
        gene_list
            Genes, in this order; all where ``None``.
        level
            Share of true effects that intervals are to hold.
        shift_within
            As for :meth:`counterfactual`; here intervals hold the error of the shift as well.
        n_samples, seed
            Samples of the posterior, and their seed.

        Returns
        -------
        CounterfactualEffect
            Nothing is written.

        Raises
        ------
        ValueError
            If a covariate, category or column is unknown, or the two settings set different covariates.
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        refuse_without_counts(self.module)
        settings = [read_setting("control", control, self.registry), read_setting("treated", treated, self.registry)]
        if sorted(control) != sorted(treated):
            raise ValueError(
                f"control sets {sorted(control)}, but treated sets {sorted(treated)}: set the same covariates in both."
            )
        genes = select_genes(gene_list, self.registry.var_names)
        level, n_samples = interval_level(level), whole_number("n_samples", n_samples)
        seed = whole_number("seed", seed, least=0)
        groups, group_of_cell = groups_of_cells(adata, groupby, cells)
        replicate, own = self._refitted(), self._cells(None, None, None, fill_missing_genes)[1]
        positions = self._own_positions(adata, cells, own.source)
        with evaluating(self.module):
            known = shifts = None
            if shift_within is not None:
                known, asked = self._comparable(own, adata, cells, shift_within)
                shifts = [state_shift(known, setting, asked, cells.positions) for setting in settings]
            means, lfc, half_width = effect_of_settings(
                self.module,
                cells,
                settings,
                group_of_cell,
                len(groups),
                replicate,
                level,
                n_samples,
                seed,
                positions if (positions >= 0).all() else None,
                known=known,
                shifts=shifts,
            )
            overlaps = overlap_with(self.module, own, settings, cells, seed, shifts)
        chosen = slice(None) if genes is None else genes
        return CounterfactualEffect(
            control=dict(control),
            treated=dict(treated),
            mean_control=means[0][:, chosen],
            mean_treated=means[1][:, chosen],
            lfc=lfc[:, chosen],
            half_width=half_width[:, chosen],
            level=level,
            groups=groups,
            n_cells=np.bincount(group_of_cell, minlength=len(groups)),
            overlap_control=overlaps[0],
            overlap_treated=overlaps[1],
            group_of_cell=groups.to_numpy()[group_of_cell],
            var_names=pd.Index(self._gene_names(genes)),
        )

    def _comparable(
        self, own: Cells, adata: AnnData, cells: Cells, shift_within: str
    ) -> tuple[GroupedStates, GroupedStates]:
        """Return the model's own cells, and all of another source, by groups of comparable ones."""
        known = grouped_states(self.module, own, self.adata, shift_within)
        return known, known if adata is self.adata else grouped_states(self.module, cells, adata, shift_within)
