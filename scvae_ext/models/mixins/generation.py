"""New cells drawn from the model."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from anndata import AnnData

from scvae_ext.data import record_result, write_registry
from scvae_ext.data.fields import in_pandas
from scvae_ext.models.cells import Cells, evaluating
from scvae_ext.models.generation import Depth, SourceOfStates, as_anndata, draw_cells, fitted_depth
from scvae_ext.models.groups import cells_of_groups
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection
from scvae_ext.models.settings import read_setting

__all__ = ["GenerationMixin"]


class GenerationMixin(VAEModel):
    """New cells drawn from the model."""

    def generate(
        self,
        n_obs: int = 1000,
        *,
        like: SourceOfStates | None = None,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        groupby: str | None = None,
        group: str | Sequence[str] | None = None,
        set: Mapping[str, str | float] | None = None,
        library_size: float | Sequence[float] | np.ndarray | Literal["fitted", "observed"] = "fitted",
        batch_size: int | None = None,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> AnnData:
        r"""Make new cells: draw states, covariates and library sizes, and counts from the likelihood there.

        .. math:: z \sim p(z) \text{ or } \tfrac1N \sum_n q(z \mid x_n), \quad
                  \ell \sim p(\ell \mid z, s), \quad x \sim p(x \mid z, s, \ell)

        The prior is what training pulls states towards, not where they end: with the standard normal prior the mixture
        of the posteriors of all cells differs from it (``diagnostics.posterior_collapse`` says by how much), and cells
        drawn from it can lie between types. ``like="cells"`` draws from that mixture: new cells in the states, and with
        the covariates, of cells that were seen.

        Parameters
        ----------
        n_obs
            Number of new cells.
        like
            ``"prior"``, also a learned one, or ``"cells"``: a random cell's posterior for each new cell. By default
            the latter where cells or groups are named, and the prior otherwise.
        adata
            AnnData with the cells that lend states and covariates; the model's own where ``None``.
        indices
            Cells to draw like: positions, a mask or names; all where ``None``.
        groupby, group
            Column of ``adata.obs``, and one or several of its groups to draw like, at their frequencies; all cells that
            have a group where ``group`` is ``None``.
        set
            Value by covariate, as for :meth:`counterfactual`: new cells are decoded with it. Covariates that are not
            set are those of a random cell, all of one cell: of the one that lends its state, or with the prior of one
            that was seen under what is set, if there is any.
        library_size
            ``"fitted"``: drawn from a distribution given batch and state that is fitted to the cells of ``adata``
            (:func:`~scvae_ext.analysis.fit_library_sizes`), or from that of a model whose library size is latent.
            ``"observed"``: that of the cell that lends its covariates. A number, or one for each new cell, in counts.
            With size factors, those of the same cells are used.
        batch_size
            Cells decoded at once.
        seed
            Seed of all draws.
        fill_missing_genes
            As for :meth:`get_latent_representation`.

        Returns
        -------
        anndata.AnnData
            Set up as the model's own. ``X`` (and the layer that counts are in): whole numbers, sparse, float32.
            ``obs``: the covariates, and the label of the same cell, for :class:`~scvae_ext.SemiSupervisedVAE` with the
            prior one drawn from :math:`p(y \mid z)`; ``scvae_library_size``, what each cell was decoded with, in counts
            (its total scatters around that); ``scvae_source``, the cell that lent state or covariates;
            ``scvae_source_group``, its group. ``obsm["X_scvae"]``: the latent point that each cell was decoded from,
            not an encoding of its counts.
            Its provenance is in ``uns["scvae_ext"]``.

        Raises
        ------
        RuntimeError
            If the model has not been trained.
        ValueError
            If a group, a cell or a covariate is unknown, or ``like="prior"`` is given cells.

        Examples
        --------
        >>> import scvae_ext as sv
        >>> adata = sv.datasets.synthetic_counts(200, 50, n_batches=2)
        >>> sv.SCVAE.setup_anndata(adata, batch_key="batch")
        >>> model = sv.SCVAE(adata)
        >>> model.train(max_epochs=5, enable_progress_bar=False)
        >>> cells = model.generate(30, groupby="cell_type", group="type_1", set={"batch": "batch_0"})
        >>> cells.shape, cells.obs["scvae_source_group"].unique().tolist(), cells.obs["batch"].unique().tolist()
        ((30, 50), ['type_1'], ['batch_0'])
        """
        adata, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_obs, seed = whole_number("n_obs", n_obs), whole_number("seed", seed, least=0)
        names_cells = indices is not None or groupby is not None or group is not None
        like = ("cells" if names_cells else "prior") if like is None else like
        if like not in get_args(SourceOfStates):
            raise ValueError(f'like={like!r} is not known: use "prior", or "cells" for states of cells that were seen.')
        if like == "prior" and names_cells:
            raise ValueError('like="prior" draws from no cells: leave indices, groupby and group out, or like="prior".')
        pool = cells.positions
        groups = None
        if groupby is not None or group is not None:
            groups = cells_of_groups(in_pandas(adata.obs), groupby, group)
            pool = pool[groups.notna().to_numpy()[pool]]
            if not len(pool):
                raise ValueError(f"None of the chosen cells is in group={group!r} of adata.obs[{groupby!r}].")
        setting = None if set is None else read_setting("set", set, self.registry)
        if like == "prior" and setting is not None:
            seen = pool[setting.is_observed(cells.source)[pool]]
            pool = seen if len(seen) else pool
        sources = np.random.default_rng(seed).choice(pool, n_obs)
        everything = Cells(cells.source, np.arange(cells.source.n_cells), self.device, batch_size)
        with evaluating(self.module):
            depth = self._depth_of_new_cells(library_size, n_obs, everything, seed)
            lenders = Cells(cells.source, sources, self.device, batch_size)
            drawn = draw_cells(self.module, lenders, like, setting, depth, seed)
        columns = {"scvae_source": cells.source.obs_names[sources].to_numpy()}
        if groups is not None:
            columns["scvae_source_group"] = groups.iloc[sources].cat.remove_unused_categories().to_numpy()
        generated = as_anndata(drawn, self.registry, self.latent_key, columns)
        write_registry(generated, self.registry)
        fitted = depth.fitted
        record = {
            "like": like,
            "groupby": groupby,
            "groups": None if groups is None else sorted({str(name) for name in columns["scvae_source_group"]}),
            "set": None if set is None else dict(set),
            "library_size": depth.kind if fitted is None else fitted.to_frame().to_dict("records"),
            "seed": seed,
        }
        record_result(generated, "X", self._provenance(record))
        return generated

    def _depth_of_new_cells(self, library_size: Any, n_obs: int, cells: Cells, seed: int) -> Depth:
        """Resolve where library sizes of new cells come from."""
        is_default = isinstance(library_size, str) and library_size == "fitted"
        if self.registry.size_factor_key is not None:
            if not is_default:
                raise ValueError(
                    f"library_size={library_size!r} has no meaning with size_factor_key="
                    f"{self.registry.size_factor_key!r}, whose factors take its place: leave it out."
                )
            return Depth("observed")
        if is_default:
            has_own = not self._options["use_observed_lib_size"]
            return Depth("fitted", None if has_own else fitted_depth(self.module, cells, seed))
        if isinstance(library_size, str):
            if library_size != "observed":
                raise ValueError(
                    f'library_size={library_size!r} is not known: use "fitted", "observed", or a number of counts.'
                )
            return Depth("observed")
        sizes = np.asarray(library_size, dtype=np.float64)
        if sizes.ndim > 1 or sizes.shape not in ((), (n_obs,)) or not (np.isfinite(sizes) & (sizes > 0)).all():
            raise ValueError(
                f"library_size={library_size!r} must be a positive number of counts, or one for each of the {n_obs} "
                "new cells."
            )
        return Depth("given", given=np.broadcast_to(sizes, (n_obs,)).copy())
