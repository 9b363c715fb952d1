"""The aggregated posterior: the density of latent states among some cells."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["AggregatedPosterior"]

# Pairs of a cell and a component at once: 16 MB in double precision.
_PAIRS_AT_ONCE = 2**21
_CELLS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class AggregatedPosterior:
    r"""Mixture of the Gaussian posteriors of some cells, one mixture for each group of them.

    .. math:: q_s(z) = \frac{1}{N_s} \sum_{m \in s} q(z \mid x_m), \qquad
              q(z \mid x_m) = \mathcal N(\mu_m, \operatorname{diag} \sigma_m^2)

    Parameters
    ----------
    mean, variance
        Posterior of each cell of the mixtures.
    group
        Mixture that it belongs to, from zero.
    n_groups
        How many there are.
    """

    mean: Float[np.ndarray, "components latent"]
    variance: Float[np.ndarray, "components latent"]
    group: Int[np.ndarray, "components"]
    n_groups: int

    def log_density(
        self,
        mean: Float[np.ndarray, "cells latent"],
        variance: Float[np.ndarray, "cells latent"],
        own: Int[np.ndarray, "cells"],
        bandwidth: float = 1.0,
    ) -> Float[np.ndarray, "cells groups"]:
        r"""Return the log density of each group's mixture at each cell, averaged over the cell's posterior, in nats.

        .. math:: \log \int q_s(z)\, q(z \mid x_n)\, dz = \log \frac{1}{|s \setminus n|} \sum_{m \in s,\, m \ne n}
                  \mathcal N(\mu_n;\, \mu_m, \operatorname{diag}(\sigma_n^2 + \sigma_m^2))

        The cell itself is left out of the mixture of its own group: its posterior lies where it is, and would make its
        group look dense there by itself. Sums run over blocks of cells with the largest term factored out, so that
        memory does not grow with the number of cells and nothing underflows.

        Parameters
        ----------
        mean, variance
            Posterior of each cell; a variance of zero gives the density at a point.
        own
            Position of each cell among the components, -1 where it is not one of them.
        bandwidth
            Factor on the standard deviations of the sum; more than one smooths.

        Returns
        -------
        numpy.ndarray
            Minus infinity where a group has no cell but the one itself.
        """
        order = np.argsort(self.group, kind="stable")
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        own = np.where(own >= 0, place[own], -1)
        centre, spread = (torch.from_numpy(values[order]).double() for values in (self.mean, self.variance))
        ends = np.searchsorted(self.group[order], np.arange(self.n_groups + 1))
        result = np.empty((len(mean), self.n_groups))
        for start in range(0, len(mean), _CELLS_AT_ONCE):
            cells = slice(start, start + _CELLS_AT_ONCE)
            points, widths = (torch.from_numpy(values[cells]).double() for values in (mean, variance))
            in_block = own[cells]
            for group in range(self.n_groups):
                first, last = int(ends[group]), int(ends[group + 1])
                total = torch.full((len(points),), -torch.inf, dtype=torch.float64)
                step = max(1, _PAIRS_AT_ONCE // len(points))
                for low in range(first, last, step):
                    high = min(low + step, last)
                    kernel = _log_kernel(points, widths, centre[low:high], spread[low:high], bandwidth)
                    mine = np.flatnonzero((in_block >= low) & (in_block < high))
                    kernel[mine, in_block[mine] - low] = -torch.inf
                    total = torch.logaddexp(total, kernel.logsumexp(dim=1))
                is_own = (in_block >= first) & (in_block < last)
                # A mixture of none has no density: minus infinity, whatever it is divided by.
                result[cells, group] = total.numpy() - np.log(np.maximum(last - first - is_own, 1))
        return result


def _log_kernel(
    points: Float[Tensor, "cells latent"],
    widths: Float[Tensor, "cells latent"],
    centre: Float[Tensor, "components latent"],
    spread: Float[Tensor, "components latent"],
    bandwidth: float,
) -> Float[Tensor, "cells components"]:
    """Return the log density of each component, widened by each cell's own variance, at the cell's mean."""
    total = torch.zeros(len(points), len(centre), dtype=torch.float64)
    for dimension in range(points.shape[1]):
        variance = (widths[:, dimension, None] + spread[:, dimension]) * bandwidth**2
        deviation = points[:, dimension, None] - centre[:, dimension]
        total += deviation.square_().div_(variance)
        total += variance.mul_(2 * torch.pi).log_()
    return total.mul_(-0.5)
