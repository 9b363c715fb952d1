"""From counts to the parameters of the variational posterior."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional

from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn.mlp import MLP, Normalisation
from scvae_ext.nn.precision import full_precision

__all__ = ["Encoder", "LibraryEncoder"]

# exp(-7.5) to exp(7.5) for a standard deviation: never reached in practice, and no overflow on the way there.
LOG_VARIANCE_LIMIT = 15.0


class Encoder(nn.Module):
    r"""Diagonal Gaussian posterior :math:`q(z \mid x) = \mathcal N(\mu_\phi(x), \operatorname{diag} \sigma_\phi^2(x))`.

    Parameters
    ----------
    n_in, n_hidden, n_out, n_layers
        Number of inputs, hidden units, dimensions of the posterior, and hidden layers.
    n_covariates
        Number of covariate columns that the encoder sees.
    inject_everywhere, normalisation, dropout_rate
        As for :class:`~scvae_ext.nn.MLP`.
    """

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_out: int,
        n_layers: int = 1,
        n_covariates: int = 0,
        *,
        inject_everywhere: bool = True,
        normalisation: Normalisation = "batch",
        dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.mlp = MLP(
            n_in,
            n_hidden,
            n_layers,
            n_covariates,
            inject_everywhere=inject_everywhere,
            normalisation=normalisation,
            dropout_rate=dropout_rate,
            sparse_input=True,
        )
        self.mean = nn.Linear(n_hidden, n_out)
        self.log_variance = nn.Linear(n_hidden, n_out)

    def forward(
        self, x: Float[Tensor, "cells n_in"] | SparseCounts, covariates: Float[Tensor, "cells covariates"]
    ) -> Normal:
        """Return the posterior of each cell, of batch shape (cells, dimensions).

        Parameters
        ----------
        x
            Transformed counts, dense or sparse.
        covariates
            Covariate columns.
        """
        hidden = self.mlp(x, covariates)
        return gaussian(full_precision(self.mean(hidden)), full_precision(self.log_variance(hidden)))


class LibraryEncoder(nn.Module):
    r"""Gaussian posterior of a cell's log library size, :math:`q(\log \ell \mid x)`.

    Its mean is an offset, bounded to :math:`\pm 5` (a factor of 148), from the log of the observed total, so that no
    step of training can overflow the exponential that turns it into counts.

    Parameters
    ----------
    n_in, n_hidden, n_covariates, normalisation, dropout_rate
        As for :class:`Encoder`.
    """

    MAX_LOG_OFFSET = 5.0

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_covariates: int = 0,
        *,
        normalisation: Normalisation = "batch",
        dropout_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.mlp = MLP(
            n_in,
            n_hidden,
            1,
            n_covariates,
            normalisation=normalisation,
            dropout_rate=dropout_rate,
            sparse_input=True,
        )
        self.offset = nn.Linear(n_hidden, 1)
        self.log_variance = nn.Linear(n_hidden, 1)
        with torch.no_grad():
            self.offset.weight.mul_(0.1)
            self.offset.bias.zero_()
            self.log_variance.weight.mul_(0.1)
            self.log_variance.bias.fill_(-4.0)

    def forward(
        self,
        x: Float[Tensor, "cells n_in"] | SparseCounts,
        covariates: Float[Tensor, "cells covariates"],
        log_library_size: Float[Tensor, "cells"],
    ) -> Normal:
        """Return the posterior of the log library size, of batch shape (cells,).

        Parameters
        ----------
        x, covariates
            As for :class:`Encoder`.
        log_library_size
            Log of the observed total counts.
        """
        hidden = self.mlp(x, covariates)
        offset = self.MAX_LOG_OFFSET * torch.tanh(full_precision(self.offset(hidden)).squeeze(-1) / self.MAX_LOG_OFFSET)
        log_variance = full_precision(self.log_variance(hidden)).squeeze(-1)
        return gaussian(log_library_size + offset, log_variance)


def gaussian(mean: Float[Tensor, "..."], log_variance: Float[Tensor, "..."]) -> Normal:
    """Return a Gaussian whose log variance is kept within bounds that are never reached in practice.

    Parameters
    ----------
    mean, log_variance
        Of one shape.
    """
    # The derivative of clamp takes five operations, that of hardtanh one.
    bounded = functional.hardtanh(log_variance, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
    return Normal(mean, torch.exp(0.5 * bounded), validate_args=False)
