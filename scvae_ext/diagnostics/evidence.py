"""How well the model predicts each cell, and how much of that the ELBO misses."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.diagnostics._models import AnyVAE, held_out_cells, wrong_model
from scvae_ext.diagnostics._optimised_posterior import (
    evaluating_with_gradients,
    log_weights,
    noise_of_samples,
    noise_of_steps,
    optimised,
)
from scvae_ext.models.base import BaseModel
from scvae_ext.models.cells import Cells
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection
from scvae_ext.modules import VAE

__all__ = ["Evidence", "Proposal", "evidence"]

Proposal = Literal["optimised", "encoder"]


@dataclass(frozen=True, eq=False, repr=False)
class Evidence:
    r"""Evidence of each cell, its precision, and the gap to the ELBO, in nats.

    Parameters
    ----------
    obs_names
        The cells.
    log_evidence
        Estimate of :math:`\log p(x)`.
    standard_error
        Monte Carlo standard error of that estimate.
    effective_sample_size
        Number of equally weighted samples of the exact posterior that the weighted ones are worth.
    elbo
        Evidence lower bound with the posterior that the encoder gives.
    optimised_elbo
        The same with the cell's own best diagonal Gaussian posterior.
    n_samples
        Samples of each cell.
    """

    trusted_from: ClassVar[int] = 10
    """Effective sample size below which an estimate is not trusted."""

    obs_names: pd.Index
    log_evidence: Float[np.ndarray, "cells"]
    standard_error: Float[np.ndarray, "cells"]
    effective_sample_size: Float[np.ndarray, "cells"]
    elbo: Float[np.ndarray, "cells"]
    optimised_elbo: Float[np.ndarray, "cells"]
    n_samples: int

    @property
    def mean(self) -> float:
        """Mean log evidence over cells, in nats per cell."""
        return float(self.log_evidence.mean())

    @property
    def mean_standard_error(self) -> float:
        """Monte Carlo standard error of :attr:`mean`: cells have independent samples, so that variances add."""
        return float(np.sqrt(np.square(self.standard_error).sum()) / len(self.standard_error))

    @property
    def gap(self) -> Float[np.ndarray, "cells"]:
        r""":math:`\log p(x) - \mathcal L(x)`, the divergence of the encoder's posterior from the exact one."""
        gap: np.ndarray = self.log_evidence - self.elbo
        return gap

    @property
    def amortization_gap(self) -> Float[np.ndarray, "cells"]:
        """What the cell's own best Gaussian posterior gains over the one that the encoder gives."""
        gap: np.ndarray = self.optimised_elbo - self.elbo
        return gap

    @property
    def approximation_gap(self) -> Float[np.ndarray, "cells"]:
        """What remains because the exact posterior is not a diagonal Gaussian."""
        gap: np.ndarray = self.log_evidence - self.optimised_elbo
        return gap

    @property
    def is_trusted(self) -> np.ndarray:
        """Whether the effective sample size of each cell is at least :attr:`trusted_from`."""
        return self.effective_sample_size >= self.trusted_from

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each cell, under the names of ``adata.obs``."""
        return pd.DataFrame(
            {
                "log_evidence": self.log_evidence,
                "standard_error": self.standard_error,
                "effective_sample_size": self.effective_sample_size,
                "is_trusted": self.is_trusted,
                "elbo": self.elbo,
                "optimised_elbo": self.optimised_elbo,
                "gap": self.gap,
                "amortization_gap": self.amortization_gap,
                "approximation_gap": self.approximation_gap,
            },
            index=self.obs_names,
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        n_cells = len(self.obs_names)
        amortization, approximation = self.amortization_gap.mean(), self.approximation_gap.mean()
        larger = (
            "Most of the gap is the encoder's: it does not give cells the best Gaussian that there is."
            if amortization > approximation
            else "Most of the gap is that of the family: exact posteriors are not diagonal Gaussians."
        )
        return "\n".join(
            [
                f"log p(x) = {self.mean:.2f} nats per cell (Monte Carlo standard error "
                f"{self.mean_standard_error:.2g}), the mean of {n_cells} cells with {self.n_samples} samples each.",
                f"The ELBO is {self.elbo.mean():.2f}, a gap of {self.gap.mean():.2f}: "
                f"{amortization:.2f} amortization gap and {approximation:.2f} approximation gap. {larger}",
                f"Effective sample size: median {np.median(self.effective_sample_size):.0f}, below "
                f"{self.trusted_from} in {np.count_nonzero(~self.is_trusted)} of {n_cells} cells.",
            ]
        )

    def __repr__(self) -> str:
        return self.summary()


def evidence(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    n_samples: int = 1000,
    n_optimisation_steps: int = 200,
    proposal: Proposal = "optimised",
    batch_size: int | None = None,
    seed: int = 0,
) -> Evidence:
    r"""Estimate the evidence of held-out cells, and split its gap to the ELBO.

    .. math::
        \log p(x) \approx \log \frac1K \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x \mid z_k)\,p(z_k)}{r(z_k)}, \qquad z_k \sim r(z)

    x is all that was observed of a cell, as for :meth:`~scvae_ext.SCVAE.get_elbo`: genes, proteins, and its label.

    The proposal r is the encoder's posterior :math:`q(z \mid x)`, or the cell's own diagonal Gaussian :math:`q^*`,
    found by gradient steps from there on the ELBO, with the path derivative of Roeder et al. Encoders fit held-out
    cells badly enough that few of their samples count, and :math:`q^*` then gives a far better estimate.

    With weights :math:`\tilde w_k` that sum to one, the effective sample size is :math:`1 / \sum_k \tilde w_k^2` and,
    by the delta method, the squared standard error :math:`\frac{K}{K-1}(\sum_k \tilde w_k^2 - \frac1K)`. The logarithm
    makes the estimate too low by about half the squared standard error. The ELBO :math:`\mathcal L` of a posterior is
    the mean of its :math:`\log w_k`. The gap splits into

    .. math::
        \log p(x) - \mathcal L(q) = \underbrace{\mathcal L(q^*) - \mathcal L(q)}_{\text{amortization}} +
        \underbrace{\log p(x) - \mathcal L(q^*)}_{\text{approximation}},

    where :math:`q^*` stays at :math:`q` if the steps do not improve on it. Too few steps move amortization gap over to
    approximation gap.

    Sources: Burda, Grosse and Salakhutdinov, ICLR 2016; Cremer, Li and Duvenaud, ICML 2018; Roeder, Wu and
    Duvenaud, NeurIPS 2017.

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE`, :class:`~scvae_ext.CiteVAE`, :class:`~scvae_ext.MultiomeVAE` or
        :class:`~scvae_ext.SemiSupervisedVAE`.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells: positions, a boolean mask or names. Where neither ``adata`` nor ``indices`` is given, the cells that
        training held out for validation; all cells of an ``adata`` that is given.
    n_samples
        K, the number of samples of each cell; at least ten.
    n_optimisation_steps
        Gradient steps for each cell's own posterior.
    proposal
        What importance samples are drawn from: ``"optimised"``, the cell's own posterior, or ``"encoder"``.
    batch_size
        Cells read at once. The result does not depend on it.
    seed
        Seed of the samples.

    Returns
    -------
    Evidence
        In nats. For ``gene_likelihood="normal"`` it is the density of log-normalised values, not to be compared with
        the probabilities of counts that the other likelihoods give.

    Raises
    ------
    TypeError
        If the model has no likelihood.
    RuntimeError
        If it has not been trained.
    ValueError
        If there are no cells, too few samples, or the proposal is unknown.

    Warns
    -----
    UserWarning
        If the effective sample size of a cell is below ten: a few samples then make up its estimate, which is likely
        too low, with a standard error that is too small.

    See Also
    --------
    scvae_ext.pl.evidence : Draw the result.
    """
    if not isinstance(model, AnyVAE):
        raise wrong_model(model, "evidence", "a likelihood")
    n_samples = whole_number("n_samples", n_samples, least=Evidence.trusted_from)
    n_steps = whole_number("n_optimisation_steps", n_optimisation_steps)
    seed = whole_number("seed", seed, least=0)
    if proposal not in get_args(Proposal):
        raise ValueError(f'proposal={proposal!r} is not known: use "optimised" or "encoder".')
    indices = held_out_cells(model, adata, indices)
    _, cells = model._cells(adata, indices, batch_size, fill_missing_genes=False)
    result = Evidence(
        cells.source.obs_names[cells.positions],
        *_estimate(model.module, cells, n_samples, n_steps, proposal, seed),
        n_samples=n_samples,
    )
    n_untrusted = np.count_nonzero(~result.is_trusted)
    if n_untrusted:
        warnings.warn(
            f"The effective sample size is below {Evidence.trusted_from} in {n_untrusted} of {len(cells)} cells "
            f"(smallest {result.effective_sample_size.min():.1f} of {n_samples} samples): their evidence is likely too "
            "low, and its standard error too small. Pass a larger n_samples.",
            UserWarning,
            stacklevel=2,
        )
    return result


def _estimate(
    module: VAE, cells: Cells, n_samples: int, n_steps: int, proposal: Proposal, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return log evidence, standard error, effective sample size, ELBO and optimised ELBO of each cell."""
    log_evidence, effective, bound, best = (np.empty(len(cells)) for _ in range(4))
    of_samples, of_steps = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    step_noise = noise_of_steps(module, n_steps, of_steps, cells.device)
    with evaluating_with_gradients(module):
        pz = module.pz()
        for rows, minibatch in cells:
            noise = noise_of_samples(module, minibatch.n_cells, n_samples, of_samples, cells.device)
            posterior = module.encode(minibatch)
            weights = log_weights(module, pz, cells, minibatch, posterior, noise)
            bound[rows] = weights.mean(0).cpu().numpy()
            best_gaussian = optimised(module, minibatch, posterior, step_noise)
            others = log_weights(module, pz, cells, minibatch, best_gaussian, noise)
            others = torch.where(others.mean(0) > weights.mean(0), others, weights)
            best[rows] = others.mean(0).cpu().numpy()
            if proposal == "optimised":
                weights = others
            log_evidence[rows] = (weights.logsumexp(0) - math.log(n_samples)).cpu().numpy()
            effective[rows] = weights.softmax(0).square().sum(0).reciprocal().cpu().numpy()
    effective = effective.clip(1.0, n_samples)
    error = np.sqrt((n_samples / effective - 1.0) / (n_samples - 1))
    return log_evidence, error, effective, bound, best
