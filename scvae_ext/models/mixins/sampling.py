"""Counts drawn from the model for the cells that are there."""

import scipy.sparse as sp
from anndata import AnnData

from scvae_ext.models import inference
from scvae_ext.models.cells import evaluating
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection, GeneSelection, select_genes

__all__ = ["SamplingMixin"]


class SamplingMixin(VAEModel):
    """Counts drawn from the model for the cells that are there."""

    def posterior_predictive_sample(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_samples: int = 1,
        gene_list: GeneSelection | None = None,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> sp.csr_matrix | list[sp.csr_matrix]:
        r"""Return counts drawn from :math:`\int p(x' \mid z)\,q(z \mid x)\,dz`.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        n_samples
            Number of draws of each cell.
        gene_list
            Genes to return, in this order; all where ``None``.
        seed
            Seed of the draws.

        Returns
        -------
        scipy.sparse.csr_matrix or list
            Cells by genes, whole numbers; a list of matrices where ``n_samples`` is above one. For ``"normal"`` the
            draws are taken back from the log and rounded.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        genes = select_genes(gene_list, self.registry.var_names)
        n_samples, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            draws = inference.predictive_samples(self.module, cells, genes, n_samples, seed)
        return draws[0] if n_samples == 1 else draws
