"""How well the model describes cells."""

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.models import inference
from scvae_ext.models.cells import evaluating
from scvae_ext.models.mixins.base import VAEModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["ScoresMixin"]


class ScoresMixin(VAEModel):
    """How well the model describes cells."""

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        n_samples: int = 10,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return the evidence lower bound in nats per cell; higher is better.

        .. math:: \mathcal L(x) = \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \operatorname{KL}(q(z \mid x) \,\|\, p(z))

        x is all that was observed of a cell: the counts of its genes, for :class:`~scvae_ext.CiteVAE` those of the
        proteins that were measured in its batch as well, and for :class:`~scvae_ext.SemiSupervisedVAE` its label,
        where it has one. A label counts once, whatever ``label_weight`` is; without its column no cell has one. A
        latent library size has a divergence of its own, which is subtracted too.

        Parameters
        ----------
        adata, indices, batch_size, fill_missing_genes
            As for :meth:`get_latent_representation`.
        return_mean
            Whether to return the mean over cells rather than a value a cell.
        n_samples, seed
            Samples of the expectation, and their seed. The draws depend on ``batch_size`` and on the cells asked for.
        """
        return self._mean_term("elbo", adata, indices, batch_size, n_samples, seed, fill_missing_genes, return_mean)

    def get_reconstruction_error(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        n_samples: int = 10,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return :math:`-\mathbb E_{q(z \mid x)}[\log p(x \mid z)]` in nats per cell; lower is better.

        x is all that was observed of a cell, as for :meth:`get_elbo`.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, n_samples, seed, fill_missing_genes
            As for :meth:`get_elbo`.
        """
        return -self._mean_term(
            "reconstruction", adata, indices, batch_size, n_samples, seed, fill_missing_genes, return_mean
        )

    def get_marginal_ll(
        self,
        adata: AnnData | None = None,
        indices: CellSelection | None = None,
        n_mc_samples: int = 1000,
        batch_size: int | None = None,
        return_mean: bool = True,
        *,
        seed: int = 0,
        fill_missing_genes: bool = False,
    ) -> float | Float[np.ndarray, "cells"]:
        r"""Return the evidence :math:`\log p(x)` in nats per cell, by importance sampling from the encoder.

        .. math:: \log p(x) \approx \log \frac1K \sum_{k=1}^K \frac{p(x \mid z_k)\,p(z_k)}{q(z_k \mid x)},
                  \qquad z_k \sim q(z \mid x)

        x is all that was observed of a cell, as for :meth:`get_elbo`: with proteins or a label it is the joint evidence
        of counts and those. The estimate is a lower bound in expectation, which tightens as K grows. Source: Burda,
        Grosse and Salakhutdinov, ICLR 2016.

        Parameters
        ----------
        adata, indices, batch_size, return_mean, seed, fill_missing_genes
            As for :meth:`get_elbo`.
        n_mc_samples
            K, the number of samples of each cell.
        """
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_samples, seed = whole_number("n_mc_samples", n_mc_samples), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            evidence = inference.marginal_log_likelihood(self.module, cells, n_samples, seed)
        return float(evidence.mean()) if return_mean else evidence

    def _mean_term(
        self,
        term: str,
        adata: AnnData | None,
        indices: CellSelection | None,
        batch_size: int | None,
        n_samples: int,
        seed: int,
        fill_missing_genes: bool,
        return_mean: bool,
    ) -> float | Float[np.ndarray, "cells"]:
        _, cells = self._cells(adata, indices, batch_size, fill_missing_genes)
        n_samples, seed = whole_number("n_samples", n_samples), whole_number("seed", seed, least=0)
        with evaluating(self.module):
            values = inference.elbo_terms(self.module, cells, n_samples, seed)[term]
        return float(values.mean()) if return_mean else values
