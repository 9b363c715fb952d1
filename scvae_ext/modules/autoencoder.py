"""The deterministic autoencoder, the baseline that probabilistic models start from."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.likelihoods import GeneStatistics, log_normalised_matrix
from scvae_ext.minibatch import Minibatch
from scvae_ext.modules.outputs import SquaredError
from scvae_ext.modules.trainable import Trainable
from scvae_ext.nn import MLP, CovariateColumns, LogExpressionHead
from scvae_ext.types import CellIndices, CellsByGenes, CellsByLatent

__all__ = ["DeterministicAutoencoder"]


class DeterministicAutoencoder(Trainable):
    r"""The networks of the VAE with a point in place of a posterior: :math:`z = f_\phi(x)`.

    .. math:: \min_{\phi,\theta} \frac1G \sum_g \{y_g - g_\theta(f_\phi(x), s)_g\}^2, \qquad
              y_g = \log(1 + 10^4 x_g / \ell)

    Parameters
    ----------
    n_genes, n_batches, n_categories, n_continuous, n_hidden, n_latent, n_layers, dropout_rate
        As for :class:`~scvae_ext.modules.VAE`.
    use_size_factor
        Whether size factors take the place of the library size.
    """

    monitor = "mse"
    monitor_mode = "min"

    def __init__(
        self,
        n_genes: int,
        *,
        n_batches: int = 1,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        use_size_factor: bool = False,
    ) -> None:
        super().__init__()
        self.covariates = CovariateColumns(n_batches, n_categories, n_continuous)
        self.encoder = MLP(n_genes, n_hidden, n_layers, dropout_rate=dropout_rate, sparse_input=True)
        self.latent = nn.Linear(n_hidden, n_latent)
        self.decoder = MLP(n_latent, n_hidden, n_layers, self.covariates.n_columns)
        self.head = LogExpressionHead(n_hidden, n_genes, compositional=not use_size_factor)

    def initialise(self, statistics: GeneStatistics) -> None:
        """Start the output from the mean of each gene's log-normalised values.

        Parameters
        ----------
        statistics
            Moments of each gene.
        """
        self.head.initialise(statistics.log_mean)

    def encode(self, minibatch: Minibatch) -> CellsByLatent:
        """Return the latent point of each cell.

        Parameters
        ----------
        minibatch
            The cells.
        """
        x = minibatch.counts.log1p()
        latent: Tensor = self.latent(self.encoder(x, x.values.new_empty(x.n_cells, 0)))
        return latent

    def decode_hidden(
        self, latent: CellsByLatent, minibatch: Minibatch, batch: CellIndices | None = None
    ) -> Float[Tensor, "cells hidden"]:
        """Return the decoder's activations.

        Parameters
        ----------
        latent
            Latent point of each cell.
        minibatch
            The cells, for their covariates.
        batch
            Batches to use in place of the observed ones.
        """
        hidden: Tensor = self.decoder(latent, self.covariates(minibatch, batch))
        return hidden

    def forward(self, minibatch: Minibatch) -> CellsByGenes:
        """Return the predicted log-normalised values.

        Parameters
        ----------
        minibatch
            The cells.
        """
        values: Tensor = self.head(self.decode_hidden(self.encode(minibatch), minibatch))
        return values

    def objective(self, minibatch: Minibatch, generator: torch.Generator | None = None) -> SquaredError:
        """Return the mean squared error of each cell; nothing is sampled."""
        target = log_normalised_matrix(minibatch, compositional=self.head.compositional)
        return SquaredError((self(minibatch) - target).square().mean(-1))
