"""Likelihoods p(x given z): each builds just the heads that it uses and returns a distribution."""

from typing import Any, Literal, get_args

from scvae_ext.likelihoods.base import Likelihood
from scvae_ext.likelihoods.negative_binomial import NegativeBinomialLikelihood
from scvae_ext.likelihoods.normal import NormalLikelihood
from scvae_ext.likelihoods.poisson import PoissonLikelihood
from scvae_ext.likelihoods.statistics import GeneStatistics, depth, gene_statistics, log_normalised_matrix
from scvae_ext.likelihoods.zero_inflated import ZeroInflatedNegativeBinomialLikelihood
from scvae_ext.nn import DispersionKind

__all__ = [
    "COUNT_LIKELIHOODS",
    "GeneLikelihood",
    "GeneStatistics",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "NormalLikelihood",
    "PoissonLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
    "depth",
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
    return likelihood(n_hidden, n_genes, dispersion, n_batches, n_labels, compositional)
