"""Which genes have more zeros than a negative binomial explains, and where the data cannot tell."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float
from scipy import stats

from scvae_ext.diagnostics._gene_predictions import GenePredictions, leave_one_gene_out
from scvae_ext.diagnostics._models import held_out_cells, wrong_model
from scvae_ext.diagnostics._zero_inflation_profile import PI_GRID, GeneProfiles, likelihood_ratio, profile_genes
from scvae_ext.diagnostics._zero_inflation_refits import Refits, refit
from scvae_ext.models import SCVAE
from scvae_ext.models.base import BaseModel
from scvae_ext.models.cells import MAX_ENTRIES
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["VERDICTS", "ZeroInflation", "zero_inflation"]

VERDICTS = ("supported", "not needed", "not identifiable")
"""What can be said of a gene."""

N_SAMPLES = 20
N_OPTIMISATION_STEPS = 100
FEWEST_CELLS = 20
# Below this number the distribution of a likelihood ratio is far from its limit.
FEW_CELLS = 100


@dataclass(frozen=True, eq=False, repr=False)
class ZeroInflation:
    r"""Evidence for a probability :math:`\pi_g` of an extra zero, gene by gene.

    Parameters
    ----------
    var_names
        The genes.
    n_cells
        Number of cells that were looked at.
    detected
        Share of these cells in which a gene has counts.
    profiles
        Best :math:`\pi`, interval, profile of the likelihood, and cross-validated gain.
    p_value
        Of the hypothesis that :math:`\pi = 0`.
    fdr_target
        Share of the supported genes that may be wrong on average.
    level
        Confidence level of the intervals.
    negligible
        The :math:`\pi` below which zero inflation is not needed.
    refits
        What other fits of the model say, where there are any.
    """

    var_names: pd.Index
    n_cells: int
    detected: Float[np.ndarray, "genes"]
    profiles: GeneProfiles
    p_value: Float[np.ndarray, "genes"]
    fdr_target: float
    level: float
    negligible: float
    refits: Refits | None = None

    @property
    def q_value(self) -> Float[np.ndarray, "genes"]:
        """Smallest false discovery rate at which a gene is supported (Benjamini and Hochberg)."""
        values: np.ndarray = stats.false_discovery_control(self.p_value)
        return values

    @property
    def is_supported(self) -> Bool[np.ndarray, "genes"]:
        r"""Whether the data reject :math:`\pi = 0`."""
        return self.q_value <= self.fdr_target

    @property
    def verdict(self) -> np.ndarray:
        """One of :data:`VERDICTS` for each gene."""
        is_ruled_out = self.profiles.upper <= self.negligible
        return np.where(self.is_supported, VERDICTS[0], np.where(is_ruled_out, VERDICTS[1], VERDICTS[2]))

    @property
    def gain(self) -> tuple[float, float]:
        r"""Sum over genes of what :math:`\pi` gains for held-out counts, in nats per cell, and its standard error."""
        of_cells = self.profiles.gain_of_cells
        return float(of_cells.mean()), float(of_cells.std(ddof=1) / np.sqrt(len(of_cells)))

    @property
    def profile(self) -> pd.DataFrame:
        r"""Log-likelihood of each gene (rows) at values of :math:`\pi` (columns), relative to the best, in nats."""
        return pd.DataFrame(self.profiles.profile, index=self.var_names, columns=pd.Index(PI_GRID, name="pi"))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each gene, under the names of ``adata.var``."""
        found = self.profiles
        columns: dict[str, Any] = {
            "verdict": pd.Categorical(self.verdict, categories=VERDICTS),
            "pi": found.pi,
            "lower": found.lower,
            "upper": found.upper,
            "likelihood_ratio": found.likelihood_ratio,
            "p_value": self.p_value,
            "q_value": self.q_value,
            "curvature": found.curvature,
            "slope_of_log_mean": found.slope,
            "evidence_gain": found.gain,
            "evidence_gain_error": found.gain_error,
            "detected": self.detected,
        }
        if self.refits is not None:
            columns["pi_spread"] = self.refits.pi_spread
            if self.refits.model_pi is not None:
                columns["model_pi"] = self.refits.model_pi.mean(0)
                columns["model_pi_spread"] = self.refits.model_pi.std(0, ddof=1)
        return pd.DataFrame(columns, index=self.var_names)

    def summary(self) -> str:
        """Return the result in plain words."""
        n_genes = len(self.var_names)
        counts = {name: np.count_nonzero(self.verdict == name) for name in VERDICTS}
        gain, error = self.gain
        lines = [
            f"Zero inflation is supported in {counts['supported']} of {n_genes} genes (false discovery rate "
            f"{self.fdr_target:g}), not needed in {counts['not needed']} (pi below {self.negligible:g} with "
            f"{self.level:.0%} confidence), and not identifiable in {counts['not identifiable']}, where {self.n_cells} "
            "cells cannot tell.",
            f"Adding one pi to each gene in turn changes the held-out log evidence by {gain:+.3f} nats per cell "
            f"(standard error {error:.2g}), summed over genes.",
        ]
        if self.refits is not None:
            lines.append(self.refits.summary())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def zero_inflation(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    fdr_target: float = 0.05,
    level: float = 0.95,
    negligible: float = 0.1,
    n_refits: int = 0,
    train_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> ZeroInflation:
    r"""Ask of each gene whether a probability :math:`\pi` of extra zeros is needed, and whether it can be known.

    Whether ``model`` is a negative binomial or already zero-inflated, the question is put to each gene in turn, with
    all other genes as the model has them. If only gene g changes, the evidence of a cell changes by

    .. math::
        \log p'(x) - \log p(x) = \log p'(x_g \mid x_{-g}) - \log p(x_g \mid x_{-g}), \qquad
        p(x_g \mid x_{-g}) = \int p(x_g \mid m_g)\,p(m_g \mid x_{-g})\,dm_g,

    where :math:`m_g` is the expected count, extra zeros included, and :math:`x_{-g}` the counts of the other genes: the
    quantity in which small means and large :math:`\pi` are traded. Its logarithm given :math:`x_{-g}` is taken as
    Gaussian, from 20 samples of each cell's own best posterior. The gene's counts then have three
    free parameters: an offset of the log mean, the inverse dispersion, and :math:`\pi_g`. Along the *profile*
    :math:`\ell_g(\pi)`, the other two are refitted for every :math:`\pi`.

    *Evidence.* ``evidence_gain`` is :math:`\log p(x)` with :math:`\pi_g` minus that without, in nats per cell: the loss
    if :math:`\pi_g` is removed. Offset and :math:`\pi_g` are fitted to four fifths of the cells and judged on the last
    fifth, in turn; dispersions, with :math:`\pi_g` and without, are the best for all cells. The standard error is over
    cells, paired.

    *Interval.* All :math:`\pi` at which the profile is within :math:`\tfrac12 \chi^2_1` of its maximum at the
    level. ``curvature`` is :math:`-\ell_g''` there, and ``slope_of_log_mean`` how the offset follows :math:`\pi`.

    *Verdict.* ``"supported"`` where :math:`\pi = 0` is rejected: :math:`2\{\ell_g(\hat\pi) - \ell_g(0)\}` follows
    :math:`\tfrac12\chi^2_0 + \tfrac12\chi^2_1` if there is none (Self and Liang, 1987), and Benjamini and
    Hochberg's procedure keeps the rate of false discoveries among genes. With refits, the largest p-value of
    all fits counts. Otherwise ``"not needed"`` where the interval ends below ``negligible``, and
    ``"not identifiable"`` where it does not: the data then agree both with no extra zeros and with many.

    All of it holds given the decoder's means up to one factor a gene. A mean that is wrong for some cells, such as of a
    type that the model merges with another, looks like zero inflation as well. Intervals of supported genes are
    conditional on being supported, which makes estimates of barely supported ones too high.

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE` with ``gene_likelihood="nb"`` or ``"zinb"``.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells: positions, a boolean mask or names. Where neither ``adata`` nor ``indices`` is given, the cells that
        training held out for validation; all cells of an ``adata`` that is given. At least 20.
    fdr_target
        Of the verdict ``"supported"``.
    level
        Confidence level of the intervals.
    negligible
        The :math:`\pi` below which zero inflation is not needed.
    n_refits
        Number of further fits of the same model with other seeds and the same training cells, for the spread of
        :math:`\pi`; with at least one, the model with (or without) zero inflation is fitted as well, one :math:`\pi` a
        gene, and the held-out evidence of the two is compared. Each takes as long as training did.
    train_options
        Arguments of :meth:`~scvae_ext.SCVAE.train` for refits; those of ``model`` are not known.
    seed
        Seed of samples and folds; refits count on from the model's.

    Returns
    -------
    ZeroInflation
        Nothing is written into the AnnData; ``adata.var.join(result.to_frame())`` does that.

    Raises
    ------
    TypeError
        If the model has no likelihood.
    RuntimeError
        If it has not been trained.
    ValueError
        If its likelihood is another, its dispersion belongs to cells, there is one gene or there are too few cells, or
        an option is not valid.

    Warns
    -----
    UserWarning
        If there are fewer than 100 cells: p-values and intervals, which hold for many, are then rough.

    References
    ----------
    Self and Liang (1987), Asymptotic properties of maximum likelihood estimators and likelihood ratio tests under
    nonstandard conditions; Svensson (2020), Droplet scRNA-seq is not zero-inflated.

    See Also
    --------
    scvae_ext.pl.zero_inflation : Draw the result.
    """
    scvae = _require_counts_model(model)
    for name, value in {
        "fdr_target": fdr_target,
        "level": level,
        "negligible": negligible,
    }.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must lie between 0 and 1.")
    n_refits = whole_number("n_refits", n_refits, least=0)
    seed = whole_number("seed", seed, least=0)
    indices = held_out_cells(scvae, adata, indices)
    predictions = _predict(scvae, adata, indices, seed)
    n_cells = len(predictions.log_mean)
    if n_cells < FEW_CELLS:
        warnings.warn(
            f"{n_cells} cells are few: p-values and intervals hold for many, and few genes will be decided. Pass more "
            "by indices=..., or train with a smaller train_size.",
            UserWarning,
            stacklevel=2,
        )
    profiles = profile_genes(predictions, level, seed)
    ratio, refits = profiles.likelihood_ratio, None
    if n_refits:
        refits = refit(
            scvae,
            adata,
            indices,
            profiles.pi,
            n_refits,
            train_options or {},
            lambda other: likelihood_ratio(_predict(other, adata, indices, seed)),
        )
        ratio = np.minimum(ratio, refits.likelihood_ratio)
    return ZeroInflation(
        var_names=pd.Index(scvae.registry.var_names),
        n_cells=n_cells,
        detected=np.asarray((predictions.counts > 0).mean(axis=0)).ravel(),
        profiles=profiles,
        p_value=np.where(ratio > 0, 0.5 * stats.chi2.sf(ratio, 1), 1.0),
        fdr_target=fdr_target,
        level=level,
        negligible=negligible,
        refits=refits,
    )


def _require_counts_model(model: BaseModel) -> SCVAE:
    """Raise where there is no negative binomial to ask."""
    if not isinstance(model, SCVAE):
        raise wrong_model(model, "zero_inflation", "a likelihood")
    likelihood, dispersion = model._options["gene_likelihood"], model._options["dispersion"]
    if likelihood not in ("nb", "zinb"):
        raise ValueError(
            f"zero_inflation asks for zeros beyond a negative binomial, and gene_likelihood={likelihood!r} has none: "
            'train with gene_likelihood="nb" or "zinb".'
        )
    if dispersion == "gene-cell":
        raise ValueError(
            'dispersion="gene-cell" can explain any zero by the dispersion of that cell and gene, so that pi has no '
            'meaning beside it: train with dispersion="gene", "gene-batch" or "gene-label".'
        )
    if model.registry.n_genes < 2:
        raise ValueError("zero_inflation predicts each gene from the others, and the model has one gene.")
    return model


def _predict(model: SCVAE, adata: AnnData | None, indices: CellSelection | None, seed: int) -> GenePredictions:
    """Return what the other genes of each cell say about a gene."""
    batch_size = max(1, min(512, MAX_ENTRIES // (8 * N_SAMPLES * model.registry.n_genes)))
    _, cells = model._cells(adata, indices, batch_size, fill_missing_genes=False)
    if len(cells) < FEWEST_CELLS:
        raise ValueError(
            f"zero_inflation compares cells, and indices selects {len(cells)}: pass at least {FEWEST_CELLS}."
        )
    return leave_one_gene_out(model, cells, n_samples=N_SAMPLES, n_optimisation_steps=N_OPTIMISATION_STEPS, seed=seed)
