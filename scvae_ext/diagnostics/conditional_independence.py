"""Whether genes are independent given the latent state of a cell, as the factorised likelihood says."""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float, Int
from scipy.special import ndtri

from scvae_ext.diagnostics._dependence import (
    correlated_pairs,
    eigenvalue_threshold,
    marchenko_pastur_edge,
    modules_of,
    null_of_mean_square,
)
from scvae_ext.diagnostics._models import GeneVAE, held_out_cells, wrong_model
from scvae_ext.diagnostics._residual_correlation import LEAST_CELLS, LEAST_GENES, residual_correlation, testable_genes
from scvae_ext.models.base import BaseModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection

__all__ = ["LEAST_CELLS", "ConditionalIndependence", "conditional_independence"]

Table = Literal["pairs", "genes", "eigenvalues"]

NAMED_GENES = 6
NAMED_MODULES = 3


@dataclass(frozen=True, eq=False, repr=False)
class ConditionalIndependence:
    r"""Correlations between genes of what the latent state does not explain, and what chance gives.

    Parameters
    ----------
    var_names
        The genes.
    correlation
        Correlation of the residuals of each two genes.
    eigenvalues
        Of that matrix, in descending order; one is their mean.
    loadings
        Loadings of genes on modules, a column for each eigenvalue above :attr:`threshold`; zero where chance could give
        the loading. A gene has about the square of its loading in common with the module, as a share of its residual
        variance.
    pairs
        Positions of the genes of correlated pairs, by descending magnitude of the correlation.
    p_values
        Of these pairs, two-sided.
    n_cells
        Number of cells.
    effective_sample_size
        Of the draw of each cell's state.
    significance
        False discovery rate of the pairs, and largest probability of a module where genes are independent.
    """

    trusted_from: ClassVar[int] = 10
    """Effective sample size below which the draw of a cell's state is not trusted."""

    var_names: pd.Index
    correlation: Float[np.ndarray, "genes genes"]
    eigenvalues: Float[np.ndarray, "genes"]
    loadings: Float[np.ndarray, "genes modules"]
    pairs: Int[np.ndarray, "pairs 2"]
    p_values: Float[np.ndarray, "pairs"]
    n_cells: int
    effective_sample_size: Float[np.ndarray, "cells"]
    significance: float

    @property
    def n_tested(self) -> int:
        """Number of pairs of genes."""
        return len(self.var_names) * (len(self.var_names) - 1) // 2

    @property
    def mean_square(self) -> float:
        """Mean squared correlation of all pairs."""
        n_genes = len(self.var_names)
        return float((np.square(self.correlation).sum() - n_genes) / (n_genes * (n_genes - 1)))

    @property
    def excess(self) -> float:
        """Mean squared correlation beyond :math:`1/(n - 1)`, which chance gives; zero on average if independent."""
        return self.mean_square - null_of_mean_square(self.n_cells, len(self.var_names))[0]

    @property
    def excess_error(self) -> float:
        """Standard deviation of :attr:`excess` over data sets in which genes are independent."""
        return null_of_mean_square(self.n_cells, len(self.var_names))[1]

    @property
    def rms_correlation(self) -> float:
        """Root mean square correlation, that of chance taken out: the root of :attr:`excess`, or zero if negative."""
        return math.sqrt(max(self.excess, 0.0))

    @property
    def edge(self) -> float:
        """Where the bulk of the eigenvalues ends if genes are independent (Marchenko and Pastur)."""
        return marchenko_pastur_edge(self.n_cells, len(self.var_names))

    @property
    def threshold(self) -> float:
        """What the largest eigenvalue exceeds with probability :attr:`significance`, at most, given independence."""
        return eigenvalue_threshold(self.n_cells, len(self.var_names), self.significance)

    @property
    def n_modules(self) -> int:
        """Number of eigenvalues above :attr:`threshold`."""
        return int(self.loadings.shape[1])

    @property
    def module(self) -> Int[np.ndarray, "genes"]:
        """The module on which each gene loads most, -1 for none."""
        if not self.n_modules:
            return np.full(len(self.var_names), -1)
        magnitude = np.abs(self.loadings)
        module: np.ndarray = np.where(magnitude.max(1) > 0, magnitude.argmax(1), -1)
        return module

    @property
    def modules(self) -> list[pd.Index]:
        """Genes of each module, by descending magnitude of the loading; none where each loading could be chance."""
        of_gene = self.module
        members = [np.flatnonzero(of_gene == module) for module in range(self.n_modules)]
        order = [np.argsort(-np.abs(self.loadings[genes, module])) for module, genes in enumerate(members)]
        return [self.var_names[genes[by_loading]] for genes, by_loading in zip(members, order, strict=True)]

    @property
    def is_independent(self) -> bool:
        """Whether neither a pair, nor a module, nor the mean squared correlation is beyond chance."""
        is_spread = self.excess > -float(ndtri(self.significance)) * self.excess_error
        return not (len(self.pairs) or self.n_modules or is_spread)

    def to_frame(self, table: Table = "pairs") -> pd.DataFrame:
        """Return one row for each correlated pair, gene or eigenvalue.

        Parameters
        ----------
        table
            ``"pairs"``: correlation and p-value of pairs that correlate. ``"genes"``: the module of each gene (missing
            for none), its loading there, and the number of genes that it correlates with. ``"eigenvalues"``: each with
            whether it is above :attr:`threshold`.

        Raises
        ------
        ValueError
            If the table is not one of these.
        """
        if table == "pairs":
            names = pd.MultiIndex.from_arrays([self.var_names[side] for side in self.pairs.T], names=["gene", "other"])
            first, second = self.pairs.T
            return pd.DataFrame({"correlation": self.correlation[first, second], "p_value": self.p_values}, index=names)
        if table == "genes":
            module = self.module
            rows = np.flatnonzero(module >= 0)
            loading = np.zeros(len(module))
            loading[rows] = self.loadings[rows, module[rows]]
            n_correlated = np.bincount(self.pairs.ravel(), minlength=len(module))
            of_gene = pd.array(module, dtype="Int64")
            of_gene[module < 0] = pd.NA
            columns = {"module": of_gene, "loading": loading, "n_correlated": n_correlated}
            return pd.DataFrame(columns, index=self.var_names)
        if table not in get_args(Table):
            raise ValueError(f'table={table!r} is not known: use "pairs", "genes" or "eigenvalues".')
        index = pd.RangeIndex(len(self.eigenvalues), name="rank")
        is_above = self.eigenvalues > self.threshold
        return pd.DataFrame({"eigenvalue": self.eigenvalues, "is_above_chance": is_above}, index=index)

    @property
    def verdict(self) -> str:
        """Whether genes are independent given the latent state, in one sentence."""
        tested = f"{len(self.var_names)} genes in {self.n_cells} cells"
        if self.is_independent:
            return f"No dependence between genes is left given the latent state, as far as {tested} can tell."
        if not len(self.pairs) and not self.n_modules:
            return (
                f"A weak dependence between genes is left given the latent state, spread over many pairs of {tested}: "
                f"correlations of {self.rms_correlation:.3f} (root mean square) beyond chance."
            )
        modules = "module is" if self.n_modules == 1 else "modules are"
        return (
            f"Genes are not independent given the latent state: {len(self.pairs):,} of {self.n_tested:,} pairs "
            f"correlate (false discovery rate {self.significance:.0%}), and {self.n_modules} {modules} beyond chance."
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        expected, _ = null_of_mean_square(self.n_cells, len(self.var_names))
        lines = [
            self.verdict,
            f"Residual correlations of {len(self.var_names)} genes are {self.rms_correlation:.4f} (root mean square) "
            f"beyond chance: their mean square is {self.mean_square:.3g}, where independence gives {expected:.3g} "
            f"(standard deviation {self.excess_error:.1g}).",
        ]
        largest = sorted((genes for genes in self.modules if len(genes) > 1), key=len, reverse=True)[:NAMED_MODULES]
        if largest:
            named = "; ".join(
                f"{', '.join(map(str, genes[:NAMED_GENES]))} ({len(genes)} genes)"
                if len(genes) > NAMED_GENES
                else ", ".join(map(str, genes))
                for genes in largest
            )
            lines.append(f"Largest modules: {named}.")
        lines.append(
            f"{self.n_cells} cells, the state of each drawn from its posterior (effective sample size: median "
            f"{np.median(self.effective_sample_size):.0f}, smallest {self.effective_sample_size.min():.1f})."
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def conditional_independence(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    n_genes: int = 1000,
    significance: float = 0.05,
    n_samples: int = 200,
    n_optimisation_steps: int = 150,
    batch_size: int | None = None,
    seed: int = 0,
) -> ConditionalIndependence:
    r"""Correlate the residuals of genes given the latent state, and compare with what independence gives.

    The likelihood factorises, :math:`p(x \mid z) = \prod_g p(x_g \mid z)`. For held-out cells, one state is drawn from
    each posterior, and counts become randomised quantile residuals (Dunn and Smyth, Journal of Computational and
    Graphical Statistics 5, 236, 1996):

    .. math::
        z_n \sim p(z \mid x_n), \qquad r_{ng} = \Phi^{-1}\{F(x_{ng} - 1 \mid z_n) + v_{ng}\,p(x_{ng} \mid z_n)\},
        \qquad v_{ng} \sim U(0, 1)

    If the model is right, a cell and a draw from its posterior have the joint distribution of model and prior, so that
    all :math:`r_{ng}` are independent and standard normal, *exactly and for any number of counts*. Residuals at the
    posterior mean would be shrunk, for the mean follows the cell's own noise. The encoder's posterior will not do
    either: where it is off, so are all genes of a cell together. States are therefore drawn by resampling from the
    cell's own best Gaussian, which :func:`evidence` uses as well. Pearson residuals have mean zero and variance one,
    but are so skewed where counts are few that neither of the following holds for them.

    Under independence, with n cells and G genes,

    * :math:`r\sqrt{(n-2)/(1-r^2)}` of a pair has a t distribution: pairs are reported at a false discovery rate;
    * the mean squared correlation of all pairs is :math:`1/(n-1)`, with a known small variance (Schott, Biometrika 92,
      951, 2005): what is beyond it is the excess, an estimate of the mean square of true correlations;
    * eigenvalues of the matrix of correlations end at :math:`(1 + \sqrt{G/(n-1)})^2`, and the largest of them has the
      distribution of Tracy and Widom around there (Johnstone, Annals of Statistics 29, 295, 2001): each eigenvalue
      above its upper quantile counts as a module.

    Randomisation hides a part of the correlation, more where counts are fewer: for a gene that is seen in one cell of
    twenty about a fifth of it is left, hence the choice of the genes with the most counts. What is found need not be
    biology that the latent space has no room for. It can also be that the decoder was estimated from too few cells, or
    a consequence of the library size: as :math:`\ell_n` is the sum of the same counts, genes with a large share of them
    correlate slightly negatively. The page on this diagnostic shows how much that is.

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE` or :class:`~scvae_ext.SemiSupervisedVAE`.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells: positions, a boolean mask or names; at least 50, each once. Where neither ``adata`` nor ``indices`` is
        given, the cells that training held out for validation; all cells of an ``adata`` that is given.
    n_genes
        How many genes, those with the most counts in these cells. Memory grows with its square.
    significance
        False discovery rate of the pairs, and probability of finding any module where genes are independent (for
        correlations of a few hundred cells and genes it is smaller).
    n_samples
        Samples of each cell to draw its state from; at least ten.
    n_optimisation_steps
        Gradient steps for each cell's own Gaussian.
    batch_size
        Cells read at once. The result does not depend on it.
    seed
        Seed of states and of v.

    Returns
    -------
    ConditionalIndependence
        Correlations, eigenvalues, pairs and modules.

    Raises
    ------
    TypeError
        If the model has no likelihood.
    RuntimeError
        If it has not been trained.
    ValueError
        If there are fewer than 50 cells or two genes with counts, a cell is asked for twice, or an option is not
        valid.

    Warns
    -----
    UserWarning
        If the effective sample size of a cell's state is below ten: residuals may then depend on each other because
        the state is not a draw from the posterior.

    See Also
    --------
    scvae_ext.pl.conditional_independence : Draw the result.
    compare_latent_dimensions : How the excess shrinks as the latent space grows.
    """
    if not isinstance(model, GeneVAE):
        raise wrong_model(model, "conditional_independence", "a likelihood")
    n_genes = whole_number("n_genes", n_genes, least=LEAST_GENES)
    if isinstance(significance, bool) or not 0 < significance < 1:
        raise ValueError(f"significance={significance!r} must be a probability between 0 and 1.")
    n_samples = whole_number("n_samples", n_samples, least=ConditionalIndependence.trusted_from)
    n_steps = whole_number("n_optimisation_steps", n_optimisation_steps)
    seed = whole_number("seed", seed, least=0)
    indices = held_out_cells(model, adata, indices)
    _, cells = model._cells(adata, indices, batch_size, fill_missing_genes=False)
    chosen = testable_genes(cells, n_genes)
    correlation, effective = residual_correlation(model, cells, chosen, n_samples, n_steps, seed)
    eigenvalues, loadings = modules_of(correlation, len(cells), significance)
    pairs, p_values = correlated_pairs(correlation, len(cells), significance)
    result = ConditionalIndependence(
        var_names=pd.Index(model.registry.var_names)[chosen],
        correlation=correlation,
        eigenvalues=eigenvalues,
        loadings=loadings,
        pairs=pairs,
        p_values=p_values,
        n_cells=len(cells),
        effective_sample_size=effective,
        significance=float(significance),
    )
    n_untrusted = np.count_nonzero(effective < result.trusted_from)
    if n_untrusted:
        warnings.warn(
            f"The effective sample size is below {result.trusted_from} in {n_untrusted} of {len(cells)} cells "
            f"(smallest {effective.min():.1f} of {n_samples} samples): their states may not be draws from the "
            "posterior, which can look like dependence between genes. Pass a larger n_samples.",
            UserWarning,
            stacklevel=2,
        )
    return result
