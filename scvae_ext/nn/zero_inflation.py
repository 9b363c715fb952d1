"""The output head of zero inflation: how the probability of an extra zero may vary over cells and genes."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scvae_ext.distributions import CountDistribution, LinearLogits
from scvae_ext.nn.precision import full_precision, linear_logits

__all__ = ["ZeroInflationHead", "ZeroInflationKind"]

ZeroInflationKind = Literal["gene-cell", "gene", "logistic"]


class ZeroInflationHead(nn.Module):
    r"""Logits of the probability :math:`\pi` of an extra zero.

    ``"gene-cell"``
        :math:`\operatorname{logit} \pi_{ng} = W_g h_n + b_g`, free for each cell and gene.
    ``"gene"``
        One :math:`\pi_g` for each gene.
    ``"logistic"``
        :math:`\operatorname{logit} \pi_{ng} = a - b \log \mu_{ng}` with a and :math:`b > 0` shared by all genes. At
        :math:`b = 1` this is the Michaelis-Menten curve :math:`1 - \pi = \mu / (K + \mu)` with :math:`K = e^a`.

    A prior :math:`\pi \sim \operatorname{Beta}(\alpha, \beta)` weighs as much as :math:`\alpha + \beta - 2` cells in
    which it was seen whether the zero was an extra one. It holds for one number a gene, whichever the kind:
    :math:`\pi_g` itself; for ``"gene-cell"`` its value at the mean of the decoder's activations (a running mean, as
    batch normalisation keeps it); for ``"logistic"`` it holds for one number in all, :math:`\pi` where one count is
    expected. Parameters are set to the maximum of the posterior density *of* :math:`\pi` (not of its logit), so that
    :math:`\operatorname{Beta}(1, \beta)` pulls towards zero.

    Parameters
    ----------
    kind
        What :math:`\pi` belongs to.
    n_hidden, n_genes
        Number of inputs and of genes.
    prior
        :math:`(\alpha, \beta)`, both at least one, or ``None`` for no prior.

    References
    ----------
    Kharchenko, Silberstein and Scadden (2014), Bayesian approach to single-cell differential expression analysis, for
    the logistic curve; Andrews and Hemberg (2019), M3Drop: dropout-based feature selection for scRNASeq, for that of
    Michaelis and Menten.
    """

    START = -3.0
    SLOPE_START = 0.1
    # Adam moves every parameter by about the learning rate, and logits have farther to go than weights.
    SCALE = 5.0
    MOMENTUM = 0.1
    mean_hidden: Tensor

    def __init__(
        self, kind: ZeroInflationKind, n_hidden: int, n_genes: int, prior: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.prior = prior
        if kind == "gene-cell":
            self.linear = nn.Linear(n_hidden, n_genes)
            with torch.no_grad():
                self.linear.bias.fill_(self.START)
            if prior is not None:
                self.register_buffer("mean_hidden", torch.zeros(n_hidden))
        else:
            self.scaled_logit = nn.Parameter(torch.full((n_genes if kind == "gene" else 1,), self.START / self.SCALE))
        if kind == "logistic":
            self.scaled_log_slope = nn.Parameter(torch.tensor([self.SLOPE_START]).log() / self.SCALE)

    @property
    def slope(self) -> Float[Tensor, "1"]:
        """b, how much the logit falls where the log mean rises by one; for ``"logistic"`` alone."""
        return (self.SCALE * self.scaled_log_slope).exp()

    def forward(
        self, hidden: Float[Tensor, "*samples cells hidden"], base: CountDistribution
    ) -> Float[Tensor, "*cells genes"] | LinearLogits:
        """Return the logits, of shape (genes,) for ``"gene"`` and (..., cells, genes) otherwise.

        Those of ``"gene-cell"`` need not be computed yet.

        Parameters
        ----------
        hidden
            Activations of the decoder. Residual factors behind them are left out.
        base
            The distribution to be inflated, of whose mean the logits of ``"logistic"`` are a curve.
        """
        if self.kind == "gene":
            return self.SCALE * self.scaled_logit
        if self.kind == "logistic":
            return self.SCALE * self.scaled_logit - self.slope * base.mean.log()
        hidden = hidden[..., : self.linear.in_features]
        if self.prior is not None and self.training:
            with torch.no_grad():
                self.mean_hidden.lerp_(full_precision(hidden.flatten(0, -2)).mean(0), self.MOMENTUM)
        return linear_logits(self.linear, hidden)

    def log_prior(self) -> Float[Tensor, ""] | None:
        r"""Return :math:`\sum_g (\alpha - 1) \log \pi_g + (\beta - 1) \log (1 - \pi_g)`, or ``None`` without a prior.

        It is the log density of the prior up to a constant, in nats for all cells together.
        """
        if self.prior is None:
            return None
        is_free = self.kind == "gene-cell"
        logits = full_precision(self.linear(self.mean_hidden)) if is_free else self.SCALE * self.scaled_logit
        alpha, beta = self.prior
        return ((alpha - 1.0) * logsigmoid(logits) + (beta - 1.0) * logsigmoid(-logits)).sum()
