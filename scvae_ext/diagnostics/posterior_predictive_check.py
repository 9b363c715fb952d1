"""Whether data drawn from the model look like the data that it was given."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from scipy.stats import binom

from scvae_ext.diagnostics._models import GeneVAE, held_out_cells, wrong_model
from scvae_ext.diagnostics._most_counts import most_counts
from scvae_ext.diagnostics.replicated import STATISTICS, Replicated
from scvae_ext.diagnostics.replicates import N_BINS, Latent, draw_replicates
from scvae_ext.models.base import BaseModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["Latent", "PosteriorPredictiveCheck", "posterior_predictive_check"]

Table = Literal["genes", "cells", "pairs", "coverage"]

# Mean replicated counts per cell that part rare from common and common from abundant genes.
STRATA = {"below 0.1": (0.0, 0.1), "0.1 to 1": (0.1, 1.0), "above 1": (1.0, np.inf)}
# Share of genes beyond 97.5% of the replicates, where the model is right.
EXPECTED_BY_CHANCE = 0.025
# Words for a replicated statistic that is too low and too high.
FINDINGS = {
    "mean": ("too few counts", "too many counts"),
    "variance": ("too little variance", "too much variance"),
    "zeros": ("too few zeros", "too many zeros"),
}


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorPredictiveCheck:
    r"""Statistics of the observed data beside those of replicated data sets, and the calibration of predictions.

    Parameters
    ----------
    obs_names, var_names
        The cells and genes.
    genes
        Statistics of each gene over cells: ``"mean"``, ``"variance"``, share of ``"zeros"``, coefficient of variation
        ``"cv"``, in counts.
    cells
        The same of each cell over genes.
    correlation
        Correlation of :math:`\log(1 + x)` between two genes, for each of :attr:`pairs`.
    pairs
        Positions of the genes of each pair.
    pit_counts
        Histogram over cells of each gene's randomised probability integral transform, in equal bins.
    latent
        Where z was drawn from: ``"posterior"`` or ``"prior"``.
    n_samples
        Number of replicated data sets.
    """

    reported_from: ClassVar[float] = 0.1
    """Share of testable genes off to one side from which a statistic is reported as wrong; 0.025 are expected."""
    testable_from: ClassVar[float] = 10.0
    """Replicated counts in all cells together from which a gene is tested."""
    tolerance: ClassVar[float] = 0.03
    """Distance of the coverage of 90% intervals from 0.9 that is not reported."""

    obs_names: pd.Index
    var_names: pd.Index
    genes: dict[str, Replicated]
    cells: dict[str, Replicated]
    correlation: Replicated
    pairs: Int[np.ndarray, "pairs 2"]
    pit_counts: Int[np.ndarray, "genes bins"]
    latent: Latent
    n_samples: int

    @property
    def is_testable(self) -> Bool[np.ndarray, "genes"]:
        """Whether a gene has enough replicated counts for the tests of :attr:`findings`."""
        return self.genes["mean"].expected * len(self.obs_names) >= self.testable_from

    @property
    def findings(self) -> dict[str, float]:
        """What replicated data get wrong, in words, and the share of testable genes of which that holds."""
        n_testable = np.count_nonzero(self.is_testable)
        if n_testable == 0:
            return {}
        # Of a few genes, one or two off to a side are chance.
        by_chance = binom.ppf(0.99, n_testable, EXPECTED_BY_CHANCE) / n_testable
        shares = {
            words: float(wrong[self.is_testable].mean())
            for name, (too_low, too_high) in FINDINGS.items()
            for words, wrong in (
                (too_low, self.genes[name].is_too_low),
                (too_high, self.genes[name].is_too_high),
            )
        }
        ordered = sorted(shares.items(), key=lambda item: -item[1])
        return {words: share for words, share in ordered if share > max(self.reported_from, by_chance)}

    def strata(self) -> dict[str, Bool[np.ndarray, "genes"]]:
        """Return which genes have a mean replicated count below 0.1, from 0.1 to 1, and above 1; empty ones left out.

        Genes are parted by what the model expects, not by what was observed: that would select genes whose counts
        happen to be high or low.
        """
        mean = self.genes["mean"].expected
        parts = {name: (mean >= low) & (mean < high) for name, (low, high) in STRATA.items()}
        return {name: chosen for name, chosen in parts.items() if chosen.any()}

    def pit(self, genes: Bool[np.ndarray, "genes"] | None = None) -> Float[np.ndarray, "bins"]:
        """Return the histogram of the probability integral transform as a density, one everywhere if calibrated.

        Parameters
        ----------
        genes
            Mask of the genes; all where ``None``.
        """
        chosen = self.pit_counts if genes is None else self.pit_counts[genes]
        counts = chosen.sum(0)
        density: np.ndarray = counts * (N_BINS / counts.sum())
        return density

    def coverage(self, genes: Bool[np.ndarray, "genes"] | None = None) -> pd.Series:
        """Return the share of counts inside central predictive intervals, by the level of the interval.

        Parameters
        ----------
        genes
            Mask of the genes; all where ``None``.
        """
        share = self.pit(genes) / N_BINS
        half = N_BINS // 2
        inside = np.cumsum(share[half:] + share[:half][::-1])
        levels = pd.Index(np.arange(1, half + 1) / half, name="level")
        return pd.Series(inside, index=levels, name="coverage").iloc[:-1]

    def to_frame(self, table: Table = "genes") -> pd.DataFrame:
        """Return one row for each gene, cell, pair of genes, or level of the predictive intervals.

        For each statistic, the columns give its observed value (the name of the statistic), mean and median of its
        replicated values (``_replicated``, ``_median``), the interval that holds 95% of them (``_lower``, ``_upper``),
        and the share of replicates that are larger, ties counted half (``_tail``). The detection rate is one minus the
        share of zeros.

        Parameters
        ----------
        table
            ``"genes"``, ``"cells"``, ``"pairs"`` or ``"coverage"``.

        Raises
        ------
        ValueError
            If the table is not one of these.
        """
        if table == "coverage":
            columns = {"all": self.coverage(), **{name: self.coverage(mask) for name, mask in self.strata().items()}}
            return pd.DataFrame(columns)
        if table == "pairs":
            names = pd.MultiIndex.from_arrays([self.var_names[side] for side in self.pairs.T], names=["gene", "other"])
            return self.correlation.to_frame("correlation", names)
        if table not in get_args(Table):
            raise ValueError(f'table={table!r} is not known: use "genes", "cells", "pairs" or "coverage".')
        units, index = (self.genes, self.var_names) if table == "genes" else (self.cells, self.obs_names)
        frame = pd.concat([units[name].to_frame(name, index) for name in STATISTICS], axis=1)
        return frame.assign(
            detection_rate=1 - frame["zeros"],
            detection_rate_replicated=1 - frame["zeros_replicated"],
            detection_rate_median=1 - frame["zeros_median"],
            detection_rate_lower=1 - frame["zeros_upper"],
            detection_rate_upper=1 - frame["zeros_lower"],
            detection_rate_tail=1 - frame["zeros_tail"],
        )

    @property
    def verdict(self) -> str:
        """What replicated data get wrong, in one sentence."""
        n_testable = np.count_nonzero(self.is_testable)
        if n_testable == 0:
            return (
                f"No gene has {self.testable_from:.0f} replicated counts in these {len(self.obs_names)} cells: too few "
                "to say whether replicated data look like the observed ones."
            )
        if not self.findings:
            return (
                f"Replicated data have the means, variances and zeros of the observed ones: no more than "
                f"{self.reported_from:.0%} of {n_testable} testable genes are off to one side."
            )
        found = ", ".join(f"{words} in {share:.0%}" for words, share in self.findings.items())
        return f"Replicated data have {found} of {n_testable} testable genes (2.5% expected by chance)."

    def summary(self) -> str:
        """Return the result in plain words."""
        lines = [self.verdict]
        name, genes = list(self.strata().items())[-1]
        covered = float(self.coverage(genes).loc[0.9])
        judgement = (
            "as they should"
            if abs(covered - 0.9) <= self.tolerance
            else "predictions are too narrow"
            if covered < 0.9
            else "predictions are too wide"
        )
        lines.append(
            f"90% predictive intervals hold {covered:.1%} of the counts of the {np.count_nonzero(genes)} genes with "
            f"mean {name}: {judgement}."
        )
        off = self.correlation.is_too_low | self.correlation.is_too_high
        compared = ~np.isnan(self.correlation.tail)
        if compared.any():
            lines.append(
                f"Correlations between genes lie outside the replicated 95% interval in {off[compared].mean():.1%} of "
                f"{np.count_nonzero(compared)} pairs (5% expected)."
            )
        source = (
            "latent points from each cell's own posterior, which has seen its counts: a misfit can be larger than shown"
            if self.latent == "posterior"
            else "latent points from the prior"
        )
        lines.append(f"{self.n_samples} replicates of {len(self.obs_names)} cells, {source}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def posterior_predictive_check(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    latent: Latent = "posterior",
    n_samples: int = 100,
    n_correlated_genes: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
) -> PosteriorPredictiveCheck:
    r"""Compare held-out cells with data sets that the model replicates for them.

    Replicated counts are drawn as

    .. math::
        x^{\text{rep}}_n \sim p(x \mid z_n, \ell_n, s_n), \qquad
        z_n \sim q(z \mid x_n) \ \text{or} \ p(z),

    with the cell's library size and covariates. A statistic of the observed data that lies outside what replicated
    data sets show is one that the model gets wrong. Mean, variance, share of zeros and coefficient of variation are
    computed for each gene over cells and for each cell over genes, with the number of cells or genes as denominator
    of the variance, and correlations of :math:`\log(1 + x)` between genes.

    Predictions are calibrated if the randomised probability integral transform

    .. math::
        u = F(x - 1) + v\,p(x), \qquad v \sim U(0, 1)

    of held-out counts is uniform, where p and F belong to the predictive distribution, the mixture over the draws of z.
    It is computed from ranks: with b of S replicated counts below the observed one and t equal to it,
    :math:`u = (b + v(t + 1))/(S + 1)`, which is uniform for any S if observed and replicated counts are exchangeable.
    The share of u within :math:`(1 \pm \alpha)/2` is the coverage of the central interval of level :math:`\alpha`.

    With ``latent="posterior"`` each cell is predicted from a posterior that has seen its counts. This double use of the
    data makes predictions look better than they are, by more the fewer genes there are: u then piles up in the middle.
    What depends on the likelihood alone, such as too little variance given z, shows nevertheless. With
    ``latent="prior"`` cells are predicted from their library size and covariates alone, so that u is exactly uniform
    for a correct model; a prior that does not match the cells then counts as misfit as well.

    A statistic is reported as wrong where it is off to one side, beyond 97.5% of the replicates, in more than 10% of
    the genes that have at least ten replicated counts, and in more of them than would happen by chance once in a
    hundred times if genes were independent.

    Sources: Rubin, Annals of Statistics 12, 1151 (1984); Gelman, Meng and Stern, Statistica Sinica 6, 733 (1996);
    Czado, Gneiting and Held, Biometrics 65, 1254 (2009).

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE` or :class:`~scvae_ext.SemiSupervisedVAE`. For ``gene_likelihood="normal"``
        replicated values are rounded to counts.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells: positions, a boolean mask or names; at least two. Where neither ``adata`` nor ``indices`` is given, the
        cells that training held out for validation; all cells of an ``adata`` that is given.
    latent
        ``"posterior"`` to draw z from each cell's :math:`q(z \mid x)`, ``"prior"`` to draw it from p(z).
    n_samples
        Number of replicated data sets; at least 40, so that a tail of 2.5% is one of them.
    n_correlated_genes
        How many genes, those with the most counts, enter the correlations.
    batch_size
        Cells read at once; draws depend on it.
    seed
        Seed of all draws.

    Returns
    -------
    PosteriorPredictiveCheck
        In counts.

    Raises
    ------
    TypeError
        If the model has no likelihood.
    RuntimeError
        If it has not been trained.
    ValueError
        If there are fewer than two cells, or an option is not valid.

    See Also
    --------
    scvae_ext.pl.posterior_predictive_check : Draw the result.
    """
    if not isinstance(model, GeneVAE):
        raise wrong_model(model, "posterior_predictive_check", "a likelihood")
    if latent not in get_args(Latent):
        raise ValueError(f'latent={latent!r} is not known: use "posterior" or "prior".')
    n_samples = whole_number("n_samples", n_samples, least=40)
    n_correlated_genes = whole_number("n_correlated_genes", n_correlated_genes)
    seed = whole_number("seed", seed, least=0)
    indices = held_out_cells(model, adata, indices)
    _, cells = model._cells(adata, indices, batch_size, fill_missing_genes=False)
    if len(cells) < 2:
        raise ValueError("posterior_predictive_check compares cells, and indices selects one: pass at least two.")
    found = draw_replicates(model.module, cells, n_samples, latent, most_counts(cells, n_correlated_genes), seed)
    return PosteriorPredictiveCheck(
        obs_names=cells.source.obs_names[cells.positions],
        var_names=pd.Index(model.registry.var_names),
        **vars(found),
        latent=latent,
        n_samples=n_samples,
    )
