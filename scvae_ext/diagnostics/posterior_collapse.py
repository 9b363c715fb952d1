"""Which latent dimensions are used, and how much they say about a cell."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from scvae_ext.diagnostics._models import AnyVAE, wrong_model
from scvae_ext.models.base import BaseModel
from scvae_ext.models.options import positive_number, whole_number
from scvae_ext.models.query import CellSelection
from scvae_ext.modules import LearnedPrior
from scvae_ext.nn import Encoder

__all__ = ["PosteriorCollapse", "posterior_collapse"]

# Entries of (draws, cells) held at once: 128 MB in double precision.
MAX_ENTRIES = 2**24
# Nats below log n_cells at which the estimate of the mutual information says little more than that it is large.
NEAR_CEILING = 0.1
# Points of Gauss-Hermite quadrature, exact for the logarithm of a density that is a polynomial of degree 63.
N_NODES = 32


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorCollapse:
    r"""Use of the latent dimensions by :math:`q(z \mid x)`, in nats per cell.

    Parameters
    ----------
    kl
        Mean divergence of each dimension's posterior from the prior, for a learned prior from its marginal.
    variance_of_mean
        Variance of each dimension's posterior mean over cells.
    mean_variance
        Mean posterior variance of each dimension; one where the prior is kept.
    threshold
        Variance of the mean above which a dimension is active.
    rate
        Mean divergence of the posterior from the prior, all dimensions together.
    rate_error
        Its Monte Carlo standard error; zero for the standard normal prior, where it has a closed form.
    mutual_information
        :math:`I_q(x; z)` of these cells; at most :math:`\log` of their number.
    mutual_information_error
        Its Monte Carlo standard error.
    n_cells
        Number of cells.
    """

    kl: Float[np.ndarray, "latent"]
    variance_of_mean: Float[np.ndarray, "latent"]
    mean_variance: Float[np.ndarray, "latent"]
    threshold: float
    rate: float
    rate_error: float
    mutual_information: float
    mutual_information_error: float
    n_cells: int

    @property
    def is_active(self) -> Bool[np.ndarray, "latent"]:
        """Whether the posterior mean of each dimension varies between cells by more than :attr:`threshold`."""
        return self.variance_of_mean > self.threshold

    @property
    def n_active(self) -> int:
        """Number of active dimensions."""
        return int(np.count_nonzero(self.is_active))

    @property
    def marginal_kl(self) -> float:
        r""":math:`\operatorname{KL}(q(z) \,\|\, p(z))`, the divergence of the aggregated posterior from the prior."""
        return self.rate - self.mutual_information

    @property
    def max_mutual_information(self) -> float:
        """Logarithm of the number of cells, which their mutual information cannot exceed."""
        return math.log(self.n_cells)

    @property
    def verdict(self) -> str:
        """Whether the posterior has collapsed, in one sentence."""
        n_latent = len(self.kl)
        if self.n_active == 0:
            return (
                f"Posterior collapse: none of the {n_latent} latent dimensions is active, so that the latent "
                "representation says nothing about the cells."
            )
        if self.n_active == n_latent:
            return f"No posterior collapse: all {n_latent} latent dimensions are active."
        unused = ", ".join(map(str, np.flatnonzero(~self.is_active)))
        active = f"{self.n_active} of {n_latent} latent dimensions are active"
        return f"Unused dimensions: {active}; not those numbered {unused}."

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each latent dimension, numbered as the columns of ``obsm["X_scvae"]``."""
        return pd.DataFrame(
            {
                "kl": self.kl,
                "variance_of_mean": self.variance_of_mean,
                "mean_variance": self.mean_variance,
                "is_active": self.is_active,
            },
            index=pd.RangeIndex(len(self.kl), name="dimension"),
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        ceiling = self.max_mutual_information
        near = (
            " That is the most that so few cells can show; the model may tell more of them apart."
            if ceiling - self.mutual_information < NEAR_CEILING
            else ""
        )
        return "\n".join(
            [
                self.verdict,
                f"Rate {self.rate:.2f} nats per cell = mutual information {self.mutual_information:.2f} "
                f"(standard error {self.mutual_information_error:.2g}) + divergence of the aggregated posterior from "
                f"the prior {self.marginal_kl:.2f}.",
                f"Mutual information is at most log({self.n_cells}) = {ceiling:.2f} for this number of cells.{near}",
            ]
        )

    def __repr__(self) -> str:
        return self.summary()


def posterior_collapse(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    n_samples: int = 10_000,
    threshold: float = 0.01,
    seed: int = 0,
) -> PosteriorCollapse:
    r"""Measure which latent dimensions the posterior uses, and what it says about cells.

    A dimension is active if :math:`\operatorname{Var}_x(\mathbb E_{q(z \mid x)}[z_d])` is above a threshold (Burda,
    Grosse and Salakhutdinov, ICLR 2016). The rate splits into

    .. math::
        \mathbb E_x \operatorname{KL}(q(z \mid x) \,\|\, p(z)) = I_q(x; z) + \operatorname{KL}(q(z) \,\|\, p(z)),
        \qquad q(z) = \frac1N \sum_{n=1}^N q(z \mid x_n)

    (Hoffman and Johnson, NeurIPS workshop on advances in approximate Bayesian inference, 2016). The mixture
    :math:`q(z)` runs over all N cells asked for, so that the mutual information is that between z and *which of these
    cells* it came from, without bias and at most :math:`\log N`. As an estimate for the population that the cells come
    from it is too low (and the divergence of the aggregated posterior too high), by more the closer it is to
    :math:`\log N`. The divergence from a learned prior has no closed form; it is estimated at the same draws, and by
    dimension it is that from the prior's marginal, so that the dimensions need not sum to the rate. With
    ``latent_distribution="ln"`` all of it refers to the Gaussian before the softmax.

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE`, :class:`~scvae_ext.CiteVAE`, :class:`~scvae_ext.MultiomeVAE` or
        :class:`~scvae_ext.SemiSupervisedVAE`.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells: positions, a boolean mask or names; all where ``None``. At least two.
    n_samples
        Draws of a cell and a latent point for the mutual information, spread evenly over cells; at least two.
    threshold
        Variance of the posterior mean above which a dimension is active.
    seed
        Seed of the draws.

    Returns
    -------
    PosteriorCollapse
        In nats per cell.

    Raises
    ------
    TypeError
        If the model has no posterior.
    RuntimeError
        If it has not been trained.
    ValueError
        If there are fewer than two cells, or an option is not valid.

    See Also
    --------
    scvae_ext.pl.posterior_collapse : Draw the result.
    """
    if not isinstance(model, AnyVAE):
        raise wrong_model(model, "posterior_collapse", "a posterior")
    n_samples = whole_number("n_samples", n_samples, least=2)
    threshold = positive_number("threshold", threshold)
    seed = whole_number("seed", seed, least=0)
    found = model.get_latent_representation(adata, indices, return_dist=True)
    assert isinstance(found, tuple)
    mean, variance = (np.asarray(array, dtype=np.float64) for array in found)
    if len(mean) < 2:
        raise ValueError("posterior_collapse compares cells, and indices selects one: pass at least two.")
    log_variance = np.log(variance)
    chosen, draws = _draw(mean, variance, n_samples, seed)
    terms = _pointwise_information(mean, variance, chosen, draws)
    module = model.module
    if module.prior is None:
        kl = 0.5 * (np.square(mean) + np.expm1(log_variance) - log_variance).mean(0)
        rate, rate_error = float(kl.sum()), 0.0
    else:
        with torch.no_grad():
            prior = _Mixture.of(module.prior, module.encoder)
        kl = prior.marginal_divergences(mean, variance)
        negative_entropy = -0.5 * (math.log(2 * math.pi) + 1 + log_variance).sum(1)
        of_draws = negative_entropy[chosen] - prior.log_prob(draws)
        rate, rate_error = float(of_draws.mean()), float(of_draws.std(ddof=1) / math.sqrt(n_samples))
    return PosteriorCollapse(
        kl=kl,
        variance_of_mean=mean.var(0),
        mean_variance=variance.mean(0),
        threshold=threshold,
        rate=rate,
        rate_error=rate_error,
        mutual_information=float(terms.mean()),
        mutual_information_error=float(terms.std(ddof=1) / math.sqrt(n_samples)),
        n_cells=len(mean),
    )


def _draw(
    mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"], n_samples: int, seed: int
) -> tuple[Int[np.ndarray, "samples"], Float[np.ndarray, "samples latent"]]:
    """Return cells, each as often as any other up to once, and a draw from the posterior of each."""
    rng = np.random.default_rng(seed)
    chosen = np.resize(rng.permutation(len(mean)), n_samples)
    noise = rng.standard_normal((n_samples, mean.shape[1]))
    return chosen, mean[chosen] + np.sqrt(variance[chosen]) * noise


def _pointwise_information(
    mean: Float[np.ndarray, "cells latent"],
    variance: Float[np.ndarray, "cells latent"],
    chosen: Int[np.ndarray, "samples"],
    draws: Float[np.ndarray, "samples latent"],
) -> Float[np.ndarray, "samples"]:
    """Return log q(z given x) - log q(z) at draws of z, with the mixture of all cells for q(z)."""
    n_cells, n_samples = len(mean), len(draws)
    # The constant of the Gaussian cancels; the quadratic form is two products of matrices.
    linear, precision = mean / variance, 1.0 / variance
    constant = -0.5 * (np.square(mean) * precision + np.log(variance)).sum(1)
    terms = np.empty(n_samples)
    size = max(1, MAX_ENTRIES // n_cells)
    for start in range(0, n_samples, size):
        part = slice(start, start + size)
        z = draws[part]
        log_density = z @ linear.T - 0.5 * np.square(z) @ precision.T + constant
        own = log_density[np.arange(len(z)), chosen[part]]
        terms[part] = own - logsumexp(log_density, axis=1) + math.log(n_cells)
    return terms


@dataclass(frozen=True)
class _Mixture:
    """A learned prior, in double precision."""

    location: Float[np.ndarray, "components latent"]
    scale: Float[np.ndarray, "components latent"]
    log_weight: Float[np.ndarray, "components"]

    @classmethod
    def of(cls, prior: LearnedPrior, encoder: Encoder) -> Self:
        gaussians = prior.components(encoder)
        parts = (gaussians.loc, gaussians.scale, prior.logits.log_softmax(0))
        return cls(*(part.double().cpu().numpy() for part in parts))

    def log_prob(self, z: Float[np.ndarray, "samples latent"]) -> Float[np.ndarray, "samples"]:
        log_joint = np.tile(self.log_weight, (len(z), 1))
        for dimension, of_dimension in enumerate(z.T):
            log_joint += self._log_densities(of_dimension, dimension)
        log_prob: np.ndarray = logsumexp(log_joint, axis=1)
        return log_prob

    def marginal_divergences(
        self, mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"]
    ) -> Float[np.ndarray, "latent"]:
        """Return the mean divergence of each dimension's posterior from the prior's marginal, by quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
        weights = weights / weights.sum()
        size = max(1, MAX_ENTRIES // (N_NODES * len(self.log_weight)))
        divergences = np.zeros(mean.shape[1])
        for dimension in range(mean.shape[1]):
            for start in range(0, len(mean), size):
                cells = slice(start, start + size)
                deviation = np.sqrt(variance[cells, dimension, None])
                z = mean[cells, dimension, None] + deviation * nodes
                log_density = logsumexp(self.log_weight + self._log_densities(z, dimension), axis=-1)
                negative_entropy = -np.log(deviation[:, 0]) - 0.5 * (1 + math.log(2 * math.pi))
                divergences[dimension] += (negative_entropy - log_density @ weights).sum()
        return divergences / len(mean)

    def _log_densities(
        self, z: Float[np.ndarray, "*points"], dimension: int
    ) -> Float[np.ndarray, "*points components"]:
        location, scale = self.location[:, dimension], self.scale[:, dimension]
        standardised = (z[..., None] - location) / scale
        log_densities: np.ndarray = -0.5 * np.square(standardised) - np.log(scale) - 0.5 * math.log(2 * math.pi)
        return log_densities
