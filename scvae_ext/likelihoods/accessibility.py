r"""Accessibility of chromatin: whether at least one fragment of a peak was seen in a cell."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from scvae_ext.minibatch import SparseCounts
from scvae_ext.nn.precision import full_precision
from scvae_ext.peaks import AccessiblePeaks
from scvae_ext.types import CellValues

__all__ = ["AccessibilityLikelihood"]

# Of the log rate: exp(-30) is never seen in a data set, and exp(5) fragments of a peak never missed in a cell.
LEAST_LOG_RATE, LARGEST_LOG_RATE = -30.0, 5.0
START_WEIGHT = 0.1


class AccessibilityLikelihood(nn.Module):
    r"""One bit for each peak, by a complementary log-log link.

    .. math::
        a_p \mid z \sim \operatorname{Bernoulli}(1 - e^{-d\,\lambda_p}), \qquad \log\lambda_p = b_p + v_p^\top h

    with the decoder's activations h(z, s) and the depth d of the cell, its number of accessible peaks over the mean of
    all. It is the probability that a Poisson number of fragments, of mean :math:`d \lambda`, is not zero: with more
    fragments from a cell more of its peaks are found, those that are rare in proportion and those that are common up to
    one, and with few fragments a closed peak is not evidence against an open one. With a logistic link and a factor for
    the depth, as in PeakVI (Ashuach, Reidenbach, Gayoso and Yosef, Cell Reports Methods 2, 100182 (2022)), the
    probability of a peak is at most the factor of the cell.

    Parameters
    ----------
    n_hidden, n_peaks
        Numbers of decoder units and peaks.
    """

    def __init__(self, n_hidden: int, n_peaks: int) -> None:
        super().__init__()
        self.log_rate = nn.Linear(n_hidden, n_peaks)

    def forward(
        self,
        hidden: Float[Tensor, "*samples cells hidden"],
        depth: CellValues,
        chosen: Int[Tensor, "chosen"] | None = None,
    ) -> Float[Tensor, "*samples cells peaks"]:
        r"""Return :math:`\log(d \lambda_p)`, the log of the expected number of fragments.

        Parameters
        ----------
        hidden
            Activations of the decoder.
        depth
            Depth of each cell, about one.
        chosen
            Peaks wanted; all where ``None``.
        """
        weight: Tensor = self.log_rate.weight
        bias: Tensor = self.log_rate.bias
        if chosen is not None:
            weight, bias = weight[chosen], bias[chosen]
        log_rate = full_precision(linear(hidden, weight, bias)) + depth.log().unsqueeze(-1)
        return log_rate.clamp(LEAST_LOG_RATE, LARGEST_LOG_RATE)

    def log_prob(
        self, hidden: Float[Tensor, "*samples cells hidden"], depth: CellValues, peaks: AccessiblePeaks
    ) -> Float[Tensor, "*samples cells"]:
        r"""Return the log-probability of the peaks of each cell, in nats.

        .. math:: \sum_p \log p(a_p) = -\sum_p d \lambda_p + \sum_{p:\,a_p = 1} \log(e^{d \lambda_p} - 1)

        so that only accessible peaks take more than an exponential.

        Parameters
        ----------
        hidden, depth
            As for :meth:`forward`.
        peaks
            Which are accessible in each cell.
        """
        log_rate = self(hidden, depth)
        ones = SparseCounts.of_peaks(peaks)
        rate = log_rate.exp()
        found = rate.flatten(-2)[..., ones.flat_index]
        # log(e^r - 1) in the form that neither overflows nor cancels; each branch is finite on the other's side too.
        large = found + torch.log1p(-torch.exp(-found.clamp_min(1.0)))
        gain = torch.where(found > 1, large, found.clamp_max(1.0).expm1().log())
        of_found: Tensor = log_rate.new_zeros(log_rate.shape[:-1]).index_add(-1, ones.cell_index, gain)
        log_prob: Tensor = of_found - rate.sum(-1)
        return log_prob

    def initialise(self, share: Float[Tensor, "peaks"]) -> None:
        r"""Start from how often each peak is accessible, :math:`b_p = \log(-\log(1 - f_p))`.

        Parameters
        ----------
        share
            Share of the cells in which each peak is accessible.
        """
        with torch.no_grad():
            self.log_rate.bias.copy_(torch.log(-torch.log1p(-share.clamp(1e-6, 1 - 1e-6))))
            self.log_rate.weight.mul_(START_WEIGHT)
