"""Whether generated cells can be told from real ones, and by what."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Float
from scipy.stats import false_discovery_control, norm, rankdata

from scvae_ext.diagnostics._two_sample import Classifier, ClassifierAuc, classifier_auc
from scvae_ext.models.options import positive_number, whole_number

__all__ = ["TwoSampleTest", "two_sample_test"]

FEWEST_CELLS = 20
LEVEL = 0.05
TOTALS = ("library size", "genes detected")


@dataclass(frozen=True, eq=False, repr=False)
class TwoSampleTest:
    """How well classifiers tell generated cells from real ones, beside how well they tell real ones from each other.

    Parameters
    ----------
    generated
        Area under the curve of each classifier, generated against real cells.
    reference
        The same for real cells against other real ones.
    features
        One row for library size, number of genes detected and each gene: ``mean_real`` and ``mean_generated`` (counts a
        cell, or genes), ``zeros_real`` and ``zeros_generated`` (shares of cells), ``auc`` (probability that a generated
        cell is above a real one), ``p_value`` of a rank test and ``q_value``, those with the largest areas first.
    """

    generated: tuple[ClassifierAuc, ...]
    reference: tuple[ClassifierAuc, ...]
    features: pd.DataFrame

    @property
    def auc(self) -> float:
        """Area under the curve of the classifier that tells the cells apart best."""
        return max(found.auc for found in self.generated)

    @property
    def is_told_apart(self) -> bool:
        """Whether any classifier tells them apart, at the level 0.05 shared out between classifiers."""
        return any(_p_value(found) <= LEVEL / len(self.generated) for found in self.generated)

    @property
    def verdict(self) -> str:
        """The answer, in one sentence."""
        best = max(self.generated, key=lambda found: found.auc)
        figures = f"area under the curve {best.auc:.3f} ± {best.standard_error:.3f}"
        if self.is_told_apart:
            return f"Generated cells can be told from real ones ({figures}, {best.classifier} classifier)."
        return f"Generated cells cannot be told from real ones ({figures} at most)."

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each comparison and classifier."""
        rows = [
            {
                "comparison": comparison,
                "classifier": found.classifier,
                "auc": found.auc,
                "standard_error": found.standard_error,
                "p_value": _p_value(found),
                "n_first": found.n_first,
                "n_second": found.n_second,
            }
            for comparison, results in (("generated", self.generated), ("real", self.reference))
            for found in results
        ]
        return pd.DataFrame(rows)

    def summary(self) -> str:
        """Return the result in plain words."""
        lines = [self.verdict]
        for found, usual in zip(self.generated, self.reference, strict=True):
            lines.append(
                f"{found.classifier}: {found.auc:.3f} ± {found.standard_error:.3f}, p = "
                f"{max(_p_value(found), 1e-99):.2g}; real cells against other real cells {usual.auc:.3f} ± "
                f"{usual.standard_error:.3f}."
            )
        notable = self.features[self.features["q_value"] <= LEVEL]
        if len(notable):
            named = ", ".join(
                f"{name} ({'higher' if area > 0.5 else 'lower'}, {area:.2f})"
                for name, area in zip(notable.index[:5], notable["auc"].to_numpy()[:5], strict=True)
            )
            lines.append(f"{len(notable)} features differ by themselves, first of all {named}.")
        else:
            lines.append("No gene differs by itself, nor do library size and the number of genes detected.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def two_sample_test(
    real: AnnData,
    generated: AnnData,
    *,
    reference: AnnData | None = None,
    layer: str | None = None,
    classifiers: Sequence[Classifier] = ("linear", "trees"),
    n_components: int = 50,
    n_folds: int = 5,
    n_permutations: int = 200,
    max_cells: int | None = 2000,
    target_sum: float = 1e4,
    seed: int = 0,
) -> TwoSampleTest:
    r"""Train classifiers to tell generated cells from real ones.

    Where no classifier does better than chance on cells left out, the two samples have one distribution as far as these
    classifiers can see: an area under the ROC curve of 0.5, against 1 for cells that never overlap. They see the
    principal components of :math:`\log(1 + 10^4 x_g / \ell)`, fitted to the training folds, and the logarithms of
    library size and of the number of genes detected. The linear one sees differences in means, gradient-boosted trees
    also those in spread and in shape. Source: Lopez-Paz and Oquab, ICLR 2017.

    Real cells should be ones that the model was not trained on; a model that repeats its training cells would pass
    against those.

    The p-value of the linear classifier comes from permutations of the samples; that of the trees takes the area,
    divided by its standard error, to be normal, and is too large rather than too small: the error is an upper bound.

    Parameters
    ----------
    real
        Real cells, with raw counts.
    generated
        Generated cells with the same genes, in any order; those of :meth:`~scvae_ext.SCVAE.generate` for example.
    reference
        Further real cells, which the yardstick compares with ``real``; by default the halves of ``real``, with half as
        many cells.
    layer
        Layer of both with the counts; ``X`` where ``None``.
    classifiers
        ``"linear"``, ``"trees"`` or both.
    n_components, n_folds
        Principal components, and folds of cross-validation.
    n_permutations
        Permutations for the p-value of the linear classifier.
    max_cells
        Cells of each sample that are looked at, at random; all where ``None``.
    target_sum
        What the counts of a cell are scaled to before the logarithm.
    seed
        Seed of subsets, folds, permutations and trees.

    Returns
    -------
    TwoSampleTest
        Areas with standard errors, and the genes that give generated cells away.

    Raises
    ------
    ValueError
        If genes are missing, values are not counts, or there are fewer than 20 cells.

    Examples
    --------
    >>> import scvae_ext as sv
    >>> adata = sv.datasets.synthetic_counts(400, 50)
    >>> sv.diagnostics.two_sample_test(adata[:200], adata[200:], n_permutations=50).is_told_apart
    False
    """
    if isinstance(classifiers, str) or not classifiers:
        raise ValueError(f'classifiers={classifiers!r} must be a list, for example ["linear", "trees"].')
    n_permutations = whole_number("n_permutations", n_permutations)
    target_sum, seed = positive_number("target_sum", target_sum), whole_number("seed", seed, least=0)
    genes = real.var_names
    rng = np.random.default_rng(seed)
    samples = [
        _some(rng, _counts(adata, genes, layer, name), max_cells)
        for name, adata in (("real", real), ("generated", generated), ("reference", reference))
        if adata is not None
    ]
    if reference is None:
        order = rng.permutation(samples[0].shape[0])
        halves = [samples[0][np.sort(half)] for half in np.array_split(order, 2)]
    else:
        halves = [samples[0], samples[2]]

    def compare(first: sp.csr_matrix, second: sp.csr_matrix, permutations: int) -> tuple[ClassifierAuc, ...]:
        (one, of_one), (two, of_two) = (_features(counts, target_sum) for counts in (first, second))
        return tuple(
            classifier_auc(
                one,
                two,
                name,
                extra=(of_one, of_two),
                n_components=whole_number("n_components", n_components),
                n_folds=whole_number("n_folds", n_folds, least=2),
                n_permutations=permutations if name == "linear" else 0,
                seed=seed,
            )
            for name in classifiers
        )

    return TwoSampleTest(
        compare(samples[0], samples[1], n_permutations),
        compare(halves[0], halves[1], n_permutations),
        _compare_features(samples[0], samples[1], genes, target_sum),
    )


def _p_value(found: ClassifierAuc) -> float:
    if found.p_value is not None:
        return found.p_value
    return float(norm.sf((found.auc - 0.5) / max(found.standard_error, 1e-12)))


def _counts(adata: AnnData, genes: pd.Index, layer: str | None, name: str) -> sp.csr_matrix:
    missing = genes.difference(adata.var_names)
    if len(missing):
        raise ValueError(f"{name} lacks {len(missing)} of the genes of real, {missing[0]!r} for example.")
    # From anndata 0.13 on, None among them stands for X.
    names = [other for other in adata.layers if other is not None]
    if layer is not None and layer not in names:
        raise ValueError(f"{name} has no layer {layer!r}; it has {', '.join(map(repr, names)) or 'none'}.")
    if adata.n_obs < FEWEST_CELLS:
        raise ValueError(f"{name} has {adata.n_obs} cells: at least {FEWEST_CELLS} are needed.")
    matrix = adata.X if layer is None else adata.layers[layer]
    counts = sp.csr_matrix(matrix, dtype=np.float64)
    if not counts.has_canonical_format or not counts.data.all():
        # An entry stands for a gene that was detected. The matrix may be the user's own.
        counts = counts.copy()
        counts.sum_duplicates()
        counts.eliminate_zeros()
    if not adata.var_names.equals(genes):
        counts = counts[:, adata.var_names.get_indexer(genes)]
    if len(counts.data) and (counts.data.min() < 0 or (counts.data != np.rint(counts.data)).any()):
        raise ValueError(f"{name} does not hold counts: pass layer=..., the layer that does.")
    return counts


def _some(rng: np.random.Generator, counts: sp.csr_matrix, max_cells: int | None) -> sp.csr_matrix:
    n_cells = counts.shape[0]
    if max_cells is None or n_cells <= whole_number("max_cells", max_cells, least=FEWEST_CELLS):
        return counts
    return counts[np.sort(rng.choice(n_cells, max_cells, replace=False))]


def _features(
    counts: sp.csr_matrix, target_sum: float
) -> tuple[Float[np.ndarray, "cells genes"], Float[np.ndarray, "cells totals"]]:
    """Return log-normalised values, and the logarithms of the two totals."""
    size = np.asarray(counts.sum(axis=1))
    detected = np.diff(counts.indptr)[:, None]
    values = np.log1p(counts.toarray() * (target_sum / np.maximum(size, 1.0)))
    return values, np.log1p(np.concatenate([size, detected], axis=1))


def _compare_features(
    real: sp.csr_matrix, generated: sp.csr_matrix, genes: pd.Index, target_sum: float
) -> pd.DataFrame:
    """Compare library size, genes detected and each gene by ranks (Mann and Whitney)."""
    (of_real, totals_real), (of_generated, totals_generated) = (
        _features(counts, target_sum) for counts in (real, generated)
    )
    n, m = len(of_real), len(of_generated)
    values = np.concatenate(
        [np.concatenate([totals_real, totals_generated]), np.concatenate([of_real, of_generated])], axis=1
    )
    ranks = rankdata(values, axis=0)
    above = (ranks[n:].sum(axis=0) - m * (m + 1) / 2) / (n * m)
    # Tied ranks have the smaller variance that their test needs.
    spread = np.sqrt(ranks.var(axis=0, ddof=1) * (1 / n + 1 / m))
    z = (ranks[n:].mean(axis=0) - ranks[:n].mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    p_value = 2 * norm.sf(np.abs(z))
    means = []
    for counts in (real, generated):
        detected = np.diff(counts.indptr)
        per_gene, zeros = np.asarray(counts.mean(axis=0)).ravel(), 1 - counts.getnnz(axis=0) / counts.shape[0]
        means.append(np.concatenate([[counts.sum() / counts.shape[0], detected.mean()], per_gene]))
        means.append(np.concatenate([[(detected == 0).mean()] * 2, zeros]))
    frame = pd.DataFrame(
        {
            "mean_real": means[0],
            "mean_generated": means[2],
            "zeros_real": means[1],
            "zeros_generated": means[3],
            "auc": above,
            "p_value": p_value,
            "q_value": false_discovery_control(p_value),
        },
        index=pd.Index([*TOTALS, *genes.astype(str)], name="feature"),
    )
    return frame.iloc[np.argsort(-np.abs(above - 0.5), kind="stable")]
