"""Likelihoods p(x given z): each builds just the heads that it uses and returns a distribution."""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from scvae_ext.likelihoods.accessibility import AccessibilityLikelihood
from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.hand_derived import LikelihoodPass
from scvae_ext.likelihoods.negative_binomial import NegativeBinomialLikelihood
from scvae_ext.likelihoods.normal import NormalLikelihood
from scvae_ext.likelihoods.observed import expected_rate_ratio
from scvae_ext.likelihoods.poisson import PoissonLikelihood
from scvae_ext.likelihoods.proteins import ProteinLikelihood
from scvae_ext.likelihoods.statistics import GeneStatistics, depth, gene_statistics, log_normalised_matrix
from scvae_ext.likelihoods.zero_inflated import ZeroInflatedNegativeBinomialLikelihood
from scvae_ext.nn import DispersionKind, ZeroInflationKind

__all__ = [
    "COUNT_LIKELIHOODS",
    "AccessibilityLikelihood",
    "GeneLikelihood",
    "GeneStatistics",
    "Likelihood",
    "LikelihoodPass",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "PoissonLikelihood",
    "ProteinLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
    "depth",
    "expected_rate_ratio",
    "gene_statistics",
    "log_normalised_matrix",
    "make_likelihood",
]

GeneLikelihood = Literal["nb", "zinb", "poisson", "normal"]
_LIKELIHOODS: dict[GeneLikelihood, type[Likelihood[Any]]] = {
    "nb": NegativeBinomialLikelihood,
    "zinb": ZeroInflatedNegativeBinomialLikelihood,
    "poisson": PoissonLikelihood,
    "normal": NormalLikelihood,
}
COUNT_LIKELIHOODS = tuple(name for name, likelihood in _LIKELIHOODS.items() if likelihood.for_counts)


def make_likelihood(
    gene_likelihood: GeneLikelihood,
    n_hidden: int,
    n_genes: int,
    *,
    dispersion: DispersionKind = "gene",
    n_batches: int = 1,
    n_labels: int = 1,
    compositional: bool = True,
    zero_inflation: ZeroInflationKind = "gene-cell",
    zero_inflation_prior: Sequence[float] | None = None,
    n_residual: int = 0,
) -> Likelihood[Any]:
    """Build a likelihood by its name.

    Parameters
    ----------
    gene_likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"`` or ``"normal"``.
    n_hidden, n_genes, n_batches, n_labels
        Numbers of decoder units, genes, batches and labels.
    dispersion
        What a dispersion (or standard deviation) belongs to.
    compositional
        Whether depth is the library size, so that expression sums to one, or a size factor.
    zero_inflation, zero_inflation_prior
        What the probability of an extra zero belongs to, and the parameters of its Beta prior, for ``"zinb"``; as for
        :class:`~scvae_ext.nn.ZeroInflationHead`.
    n_residual
        Number of residual factors, which follow the decoder's activations.

    Raises
    ------
    ValueError
        If the name or the dispersion is not one of the valid values, or does not fit the data or the likelihood.
    """
    if gene_likelihood not in _LIKELIHOODS:
        raise ValueError(
            f"gene_likelihood={gene_likelihood!r} is not known: use one of {', '.join(map(repr, _LIKELIHOODS))}."
        )
    if dispersion not in get_args(DispersionKind):
        raise ValueError(
            f"dispersion={dispersion!r} is not known: use one of {', '.join(map(repr, get_args(DispersionKind)))}."
        )
    if dispersion == "gene-label" and n_labels == 1:
        raise ValueError('dispersion="gene-label" needs labels: pass labels_key=... to setup_anndata.')
    likelihood = _LIKELIHOODS[gene_likelihood]
    if dispersion != "gene" and not likelihood.has_dispersion:
        raise ValueError(
            f"dispersion={dispersion!r} has no meaning for gene_likelihood={gene_likelihood!r}, whose variance is its "
            'mean: leave it at "gene", or use gene_likelihood="nb".'
        )
    sizes = (n_hidden, n_genes, dispersion, n_batches, n_labels, compositional)
    if likelihood is ZeroInflatedNegativeBinomialLikelihood:
        _require_zero_inflation(zero_inflation, zero_inflation_prior)
        return ZeroInflatedNegativeBinomialLikelihood(
            *sizes, zero_inflation, zero_inflation_prior, n_residual=n_residual
        )
    for name, value, default in (
        ("zero_inflation", zero_inflation, "gene-cell"),
        ("zero_inflation_prior", zero_inflation_prior, None),
    ):
        if value != default:
            raise ValueError(
                f"{name}={value!r} has no meaning for gene_likelihood={gene_likelihood!r}, which has no extra zeros: "
                f'leave it at {default!r}, or use gene_likelihood="zinb".'
            )
    return likelihood(*sizes, n_residual=n_residual)


def _require_zero_inflation(zero_inflation: str, prior: object) -> None:
    """Raise where the options of zero inflation are not valid."""
    if zero_inflation not in get_args(ZeroInflationKind):
        raise ValueError(
            f"zero_inflation={zero_inflation!r} is not known: use one of "
            f"{', '.join(map(repr, get_args(ZeroInflationKind)))}."
        )
    if prior is None:
        return
    numbers = prior if isinstance(prior, list | tuple) else ()
    if len(numbers) != 2 or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and 1 <= number < math.inf
        for number in numbers
    ):
        raise ValueError(
            f"zero_inflation_prior={prior!r} must be two numbers of at least 1, the parameters of a Beta distribution "
            "(below 1 its density is unbounded and has no maximum): for example (1.0, 9.0), or None for no prior."
        )
