"""A prior of the latent that knows labels: a Gaussian, or several, for each."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Normal

from scvae_ext.modules.prior import LearnedPrior
from scvae_ext.nn import Encoder
from scvae_ext.types import CellIndices

__all__ = ["LabelPrior"]

# Of expectation maximisation: its length; cells' worth of the spread within labels that each Gaussian has beside its
# own, lest it shrink to a point; how far apart Gaussians of a label start, in standard deviations; and how many cells
# without a label one with a label counts as in centres and variances, lest a label with few cells move elsewhere.
N_ITERATIONS, N_PRIOR_CELLS, SHIFT, LABELLED_CELL = 50, 2.0, 0.5, 30.0
TINY = 1e-6


class LabelPrior(LearnedPrior):
    r"""Mixture in which every Gaussian belongs to a label, so that a latent point says which label it has.

    .. math::
        p(y, z) = \sum_{k \in y} \pi_k \mathcal N(z; m_k, \operatorname{diag} s_k^2), \qquad
        p(y \mid z) = \frac{p(y, z)}{\sum_{y'} p(y', z)}

    The label of a cell is an observation like its counts: :math:`\log p(y \mid z)` is one more term of its
    log-likelihood, and none where the label is not known.

    Parameters
    ----------
    n_labels
        Number of labels. A cell whose label is this number, one past the last, has none.
    n_latent
        Number of latent dimensions.
    n_per_label
        Number of Gaussians of each label.
    """

    def __init__(self, n_labels: int, n_latent: int, n_per_label: int = 1) -> None:
        super().__init__(n_labels * n_per_label)
        self.n_labels, self.n_per_label = n_labels, n_per_label
        self.mean = nn.Parameter(torch.randn(n_labels * n_per_label, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_labels * n_per_label, n_latent))

    def components(self, encoder: Encoder) -> Normal:
        """Return the Gaussians, label by label; the encoder plays no part.

        Parameters
        ----------
        encoder
            The encoder of the model.
        """
        return self._gaussians()

    def _gaussians(self) -> Normal:
        return Normal(self.mean, self.log_scale.exp(), validate_args=False)

    @torch.no_grad()
    def initialise(
        self,
        mean: Float[Tensor, "cells latent"],
        variance: Float[Tensor, "cells latent"],
        label: CellIndices,
        generator: torch.Generator | None = None,
    ) -> None:
        r"""Start from the posteriors of cells, by expectation maximisation in which known labels stay as they are.

        A cell without a label is shared out among all Gaussians by their responsibility, one with a label among those
        of the label; the latter counts as thirty of the former, except in how frequent a label is. The variance of a
        cell's posterior counts, so that a Gaussian has that of what it describes.

        Parameters
        ----------
        mean, variance
            Of the posterior of each cell.
        label
            Label of each cell.
        generator
            Source of randomness for the start of several Gaussians of a label.
        """
        mean, variance = mean.double(), variance.double()
        is_known = label < self.n_labels
        membership = nn.functional.one_hot(torch.where(is_known, label, 0), self.n_labels).double()
        n_cells = membership[is_known].sum(0).unsqueeze(1)
        centre = torch.where(n_cells > 0, membership[is_known].T @ mean[is_known] / n_cells.clamp_min(1), mean.mean(0))
        # Where no label is known at all, every Gaussian starts as wide as all cells are.
        deviation = mean[is_known] - centre[label[is_known]] if is_known.any() else mean - mean.mean(0)
        spread = deviation.square().mean(0) + variance.mean(0)
        shifts = torch.zeros(self.n_labels, self.n_per_label, mean.shape[1], dtype=mean.dtype)
        if self.n_per_label > 1:
            shifts.normal_(generator=generator)
        centres = (centre.unsqueeze(1) + SHIFT * spread.sqrt() * shifts.to(mean.device)).flatten(0, 1)
        variances = spread.expand_as(centres)
        log_weights = torch.zeros(len(centres), dtype=mean.dtype, device=mean.device)
        allowed = torch.where(is_known.unsqueeze(1), membership, 1.0).log().repeat_interleave(self.n_per_label, 1)
        second = mean.square() + variance
        counts_as = torch.where(is_known, LABELLED_CELL, 1.0).double().unsqueeze(1)
        for _ in range(N_ITERATIONS):
            precision = variances.reciprocal()
            distance = second @ precision.T - 2 * mean @ (centres * precision).T + (centres.square() * precision).sum(1)
            log_joint = log_weights - 0.5 * (distance + variances.log().sum(1)) + allowed
            share = log_joint.softmax(1)
            log_weights = (share.sum(0) + 1).log()
            share *= counts_as
            weight = share.sum(0).clamp_min(TINY).unsqueeze(1)
            centres = torch.where(weight > TINY, share.T @ mean / weight, centres)
            within = (share.T @ second / weight - centres.square()).clamp_min(0)
            variances = (weight * within + N_PRIOR_CELLS * spread) / (weight + N_PRIOR_CELLS)
        self.mean.copy_(centres)
        self.log_scale.copy_(0.5 * variances.log())
        self.logits.copy_(log_weights - log_weights.mean())

    def label_log_probs(self, z: Float[Tensor, "*samples cells latent"]) -> Float[Tensor, "*samples cells labels"]:
        r"""Return :math:`\log p(y \mid z)` of every label, in nats.

        Parameters
        ----------
        z
            Latent points.
        """
        joint = self._gaussians().log_prob(z.unsqueeze(-2)).sum(-1) + self.logits.log_softmax(0)
        of_labels: Tensor = joint.unflatten(-1, (self.n_labels, self.n_per_label)).logsumexp(-1)
        return of_labels.log_softmax(-1)

    def log_prob_label(
        self, z: Float[Tensor, "*samples cells latent"], label: CellIndices
    ) -> Float[Tensor, "*samples cells"]:
        r"""Return :math:`\log p(y \mid z)` of the label of each cell, zero for cells without one.

        Parameters
        ----------
        z
            Latent points.
        label
            Label of each cell.
        """
        log_probs = self.label_log_probs(z)
        is_known = label < self.n_labels
        index = torch.where(is_known, label, 0).expand(log_probs.shape[:-1]).unsqueeze(-1)
        return log_probs.gather(-1, index).squeeze(-1) * is_known
