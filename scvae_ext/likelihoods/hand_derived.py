"""Likelihoods whose derivatives are written down rather than recorded."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.distributions import SMALLEST_MEAN
from scvae_ext.kernels import composed_log_prob, dense_product, transposed_dense_product
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.negative_binomial import NegativeBinomialLikelihood
from scvae_ext.likelihoods.zero_inflated import ZeroInflatedNegativeBinomialLikelihood
from scvae_ext.minibatch import SparseCounts

__all__ = ["LikelihoodPass"]


class LikelihoodPass:
    """From the decoder's activations to the log-probability of counts, on a CPU and in single precision.

    It reads what the likelihood holds where that lies now: it is for some minibatches, and not to be kept.

    Parameters
    ----------
    likelihood
        A likelihood that :meth:`exists_for`.
    """

    def __init__(self, likelihood: Likelihood[Any]) -> None:
        base, zeros = _parts(likelihood)
        self._dispersion = base.dispersion
        maps = [base.expression_head.linear, *([] if zeros is None else [zeros])]
        self._weights, self._biases = [each.weight for each in maps], [each.bias for each in maps]
        self._values = [(each.bias.detach(), each.weight.detach()) for each in maps]

    @staticmethod
    def exists_for(likelihood: Likelihood[Any]) -> bool:
        """Whether it is a negative binomial with a dispersion a gene and shares of the library size, or its inflation.

        Zero inflation has to be free for each cell and gene, without a prior; residual factors there must be none.

        Parameters
        ----------
        likelihood
            The likelihood.
        """
        if type(likelihood) is ZeroInflatedNegativeBinomialLikelihood:
            zeros = likelihood.zero_inflation
            if zeros.kind != "gene-cell" or zeros.prior is not None:
                return False
            likelihood = likelihood.base
        if type(likelihood) is not NegativeBinomialLikelihood:
            return False
        head = likelihood.expression_head
        return likelihood.dispersion.kind == "gene" and head.compositional and not head.n_residual

    def forward(
        self, hidden: Float[Tensor, "cells hidden"], depth: Float[Tensor, "cells"], counts: SparseCounts
    ) -> Float[Tensor, "cells"]:
        """Return the log-probability of the counts of each cell, in nats.

        Parameters
        ----------
        hidden
            Activations.
        depth
            Library sizes, in counts.
        counts
            The counts.
        """
        self._hidden = hidden
        self._theta = theta = self._dispersion.of_genes()
        logits = [dense_product(hidden, weight, bias).numpy() for bias, weight in self._values]
        log_prob, by_logits, _, _, by_zeros, sums = composed_log_prob(
            logits[0],
            depth.numpy(),
            SMALLEST_MEAN,
            theta.numpy(),
            logits[1] if len(logits) > 1 else None,
            counts.by_cell,
            overwritten=(True, True),
            sums=True,
        )
        self._by_logits = [torch.from_numpy(array) for array in (by_logits, by_zeros) if array is not None]
        of_mean, self._minus_by_theta, of_zeros = map(torch.from_numpy, cast(Any, sums))
        self._by_biases = of_mean, of_zeros
        return torch.from_numpy(log_prob)

    def backward(self, of_log_prob: float, of_log_prior: float) -> Float[Tensor, "cells hidden"]:
        """Set the gradients of all parameters, and return the derivative by the activations.

        Parameters
        ----------
        of_log_prob
            Derivative by the log-probability of each cell.
        of_log_prior
            Derivative by the log density of the prior on the parameters.
        """
        hidden, by_hidden = self._hidden * of_log_prob, torch.zeros_like(self._hidden)
        for position, (by_logits, (_, weight)) in enumerate(zip(self._by_logits, self._values, strict=True)):
            self._weights[position].grad = transposed_dense_product(by_logits, hidden)
            self._biases[position].grad = self._by_biases[position] * of_log_prob
            by_hidden.add_(dense_product(by_logits, weight.T), alpha=of_log_prob)
        by_theta = self._minus_by_theta * -of_log_prob
        self._dispersion.log_value.grad = self._dispersion.gradient_of_genes(self._theta, by_theta, of_log_prior)
        return by_hidden


def _parts(likelihood: Likelihood[Any]) -> tuple[NegativeBinomialLikelihood, nn.Linear | None]:
    if isinstance(likelihood, ZeroInflatedNegativeBinomialLikelihood):
        return likelihood.base, likelihood.zero_inflation.linear
    if isinstance(likelihood, NegativeBinomialLikelihood):
        return likelihood, None
    raise TypeError(f"There are no hand-derived gradients of a {type(likelihood).__name__}.")
