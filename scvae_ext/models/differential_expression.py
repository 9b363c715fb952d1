"""Differential expression from a trained model: draws in, one table out."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Int

from scvae_ext.analysis import (
    Comparison,
    GroupMoments,
    PairProbabilities,
    TestMode,
    change_table,
    count_table,
    group_moments,
    rank_genes_groups,
)
from scvae_ext.analysis.differential_expression import shortage_of_samples
from scvae_ext.data import make_actual, record_result
from scvae_ext.models.cells import Cells
from scvae_ext.models.groups import FEWEST_CELLS, REST, GroupPair, Groups
from scvae_ext.models.other_genes import OtherGenes
from scvae_ext.models.posterior_draws import posterior_draws
from scvae_ext.modules import VAE

__all__ = [
    "ChangeOptions",
    "DifferentialMode",
    "Units",
    "compare_groups",
    "make_units",
    "sorted_table",
    "write_ranking",
]

DifferentialMode = Literal["change", "vanilla"]


@dataclass(frozen=True)
class ChangeOptions:
    """How expression of groups is compared.

    Parameters
    ----------
    mode
        ``"change"`` or ``"vanilla"``.
    delta, fdr_target, test_mode, levels
        As for :func:`~scvae_ext.analysis.change_table`.
    batches
        Batches to compare cells in, by position; the observed ones where empty.
    all_stats
        Whether to add columns on the raw counts.
    leave_out_small
        Whether groups with too few cells or samples are left out with a warning, as of all groups of a column, or
        an error, as those that were asked for.
    n_samples
        Draws of a cell that its expression is averaged over.
    n_pairs
        Draws of each group in mode ``"vanilla"``.
    seed
        Of the draws.
    """

    mode: DifferentialMode
    delta: float | None
    fdr_target: float
    test_mode: TestMode
    levels: Sequence[float]
    batches: Sequence[int]
    all_stats: bool
    leave_out_small: bool
    n_samples: int
    n_pairs: int
    seed: int

    def __post_init__(self) -> None:
        if self.mode not in get_args(DifferentialMode):
            raise ValueError(f'mode={self.mode!r} is not known: use "change" or "vanilla".')
        for name, value in [("fdr_target", self.fdr_target), *(("cred_interval_lvls", each) for each in self.levels)]:
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} must lie between 0 and 1, as 0.05 does.")
        if self.delta is not None and not 0 <= self.delta < np.inf:
            raise ValueError(
                f"delta={self.delta!r} must be a log2 fold change: 0 for any difference, or None to choose it."
            )


@dataclass(frozen=True, eq=False)
class Units:
    """Cells of a group, or of a group in a sample, whose sums are kept apart.

    Parameters
    ----------
    of_cell
        Unit of each cell, -1 where it is left out.
    group
        Group of each unit, -1 for cells of none.
    sample
        Sample of each unit, ``None`` where cells are the replicates.
    sample_names
        Names of the samples.
    """

    of_cell: Int[np.ndarray, "cells"]
    group: Int[np.ndarray, "units"]
    sample: Int[np.ndarray, "units"] | None
    sample_names: tuple[str, ...]

    def comparison(self, pair: GroupPair, names: Sequence[str]) -> Comparison:
        """Return which units a pair of groups consists of.

        Parameters
        ----------
        pair
            The groups.
        names
            Their names.
        """
        one: Bool[np.ndarray, units] = self.group == pair.group1
        two: Bool[np.ndarray, units] = ~one if pair.group2 is None else self.group == pair.group2
        return Comparison(names[pair.group1], REST if pair.group2 is None else names[pair.group2], one, two)


def make_units(groups: Groups, samples: tuple[Int[np.ndarray, "cells"], tuple[str, ...]] | None) -> Units:
    """Split cells by group, and by sample where samples are the replicates.

    Parameters
    ----------
    groups
        Groups of the cells.
    samples
        Sample of each cell, and the names of the samples.
    """
    used = groups.of_cell >= -1
    of_cell = np.full(len(used), -1, dtype=np.int64)
    if samples is None:
        found, of_cell[used] = np.unique(groups.of_cell[used], return_inverse=True)
        return Units(of_cell, found, None, ())
    codes, names = samples
    keys = np.stack([groups.of_cell, codes], axis=1)[used]
    both, of_cell[used] = np.unique(keys, axis=0, return_inverse=True)
    return Units(of_cell, both[:, 0], both[:, 1], names)


def compare_groups(
    module: VAE, cells: Cells, groups: Groups, units: Units, options: ChangeOptions, others: OtherGenes | None = None
) -> dict[str, pd.DataFrame]:
    """Return a table for each comparison, one row a gene: the model's genes in their order, then others.

    Expression of each cell is decoded once, whatever the number of comparisons.

    Parameters
    ----------
    module, cells
        Trained module, and all cells of the AnnData.
    groups, units
        What to compare.
    options
        How.
    others
        Genes to add that the model does not have.

    Raises
    ------
    ValueError
        If a group that was asked for has fewer than three cells or, where these are the replicates, two samples, or
        there is nothing to compare.
    """
    comparisons = _large_enough(groups, units, options.leave_out_small)
    positions = np.flatnonzero(units.of_cell >= 0)
    used = replace(cells, positions=positions)
    draws = posterior_draws(module, used, options.batches, options.n_samples, options.seed, others=others)
    n_genes = cells.source.n_genes + (0 if others is None else len(others.names))
    moments = group_moments(draws, units.of_cell[positions], len(units.group), n_genes)
    pairs = _pair_probabilities(module, used, units, moments, options, others) if options.mode == "vanilla" else None
    tables = {}
    for comparison in comparisons:
        if pairs is None:
            table = change_table(
                moments,
                comparison,
                delta=options.delta,
                fdr_target=options.fdr_target,
                sample=units.sample,
                sample_names=units.sample_names,
                test_mode=options.test_mode,
                levels=options.levels,
            )
        else:
            both = moments.merge(np.stack([comparison.one, comparison.two]).astype(np.float64))
            table = pairs.table(comparison).assign(scale1=both.mean[0], scale2=both.mean[1])
        if options.all_stats:
            raw = count_table(moments, comparison)
            flag = [name for name in table if str(name).startswith("is_de_fdr")]
            table = pd.concat([table.drop(columns=flag), raw, table[flag]], axis=1)
        names = {"comparison": comparison.name, "group1": comparison.group1, "group2": comparison.group2}
        tables[comparison.group1] = table.assign(**names)
    return tables


def sorted_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all comparisons in one table, the likeliest genes of each first.

    Parameters
    ----------
    tables
        The table of each.
    """
    key = "proba_de" if "proba_de" in next(iter(tables.values())) else "bayes_factor"
    return pd.concat([table.sort_values(key, ascending=False, kind="stable") for table in tables.values()])


def write_ranking(adata: AnnData, key: str, tables: Mapping[str, pd.DataFrame], provenance: Mapping[str, Any]) -> None:
    """Write the structure that scanpy reads into ``adata.uns``, and where it came from.

    Parameters
    ----------
    adata, key
        Where to write.
    tables
        The table of each group.
    provenance
        What to record beside the time.

    Raises
    ------
    ValueError
        If the key is not a name.
    """
    if not isinstance(key, str) or not key:
        raise ValueError(f"key_added={key!r} must be a name, or None to write nothing.")
    arguments = provenance["arguments"]
    parameters = {
        "groupby": arguments["groupby"] or "",
        "reference": "rest" if arguments["group2"] is None else arguments["group2"],
        "method": f"scvae_ext {arguments['mode']}",
        "use_raw": False,
        "layer": None,
        "corr_method": "posterior expected FDR",
    }
    make_actual(adata)
    adata.uns[key] = rank_genes_groups(tables, parameters)
    written = datetime.now(UTC).isoformat(timespec="seconds")
    record_result(adata, f'uns["{key}"]', {**provenance, "written": written})


def _large_enough(groups: Groups, units: Units, leave_out_small: bool) -> list[Comparison]:
    """Return the comparisons whose groups have enough cells and, where these are the replicates, samples."""
    comparisons, too_small = [], []
    for pair in groups.pairs:
        comparison = units.comparison(pair, groups.names)
        shortage = _shortage(comparison, groups, units)
        if shortage is None:
            comparisons.append(comparison)
        else:
            too_small.append((comparison.group1, shortage))
    if not too_small:
        return comparisons
    reason = too_small[0][1]
    if not leave_out_small or not comparisons:
        raise ValueError(reason)
    left_out = ", ".join(repr(name) for name, _ in too_small)
    warnings.warn(f"{reason} No table for {left_out}.", UserWarning, stacklevel=4)
    return comparisons


def _shortage(comparison: Comparison, groups: Groups, units: Units) -> str | None:
    """Return in words what a comparison has too few of, or ``None`` if it can be made."""
    one, two = (int(np.isin(units.of_cell, np.flatnonzero(side)).sum()) for side in (comparison.one, comparison.two))
    if min(one, two) < FEWEST_CELLS:
        listed = ", ".join(f"{name!r} ({groups.size(place)})" for place, name in enumerate(groups.names))
        return (
            f"{comparison.name} has {one} and {two} cells; each side needs {FEWEST_CELLS} at least. "
            f"Groups with their numbers of cells are {listed}."
        )
    return None if units.sample is None else shortage_of_samples(comparison, units.sample, units.sample_names)


def _pair_probabilities(
    module: VAE,
    cells: Cells,
    units: Units,
    moments: GroupMoments,
    options: ChangeOptions,
    others: OtherGenes | None,
) -> PairProbabilities:
    """Draw cells of each unit, and expression of each from its posterior."""
    generator = np.random.default_rng(options.seed)
    of_cell = units.of_cell[cells.positions]
    chosen = [generator.choice(cells.positions[of_cell == unit], options.n_pairs) for unit in range(len(units.group))]
    drawn = replace(cells, positions=np.concatenate(chosen))
    expression = np.empty((len(drawn), moments.expression.shape[1]), dtype=np.float32)
    draws = posterior_draws(module, drawn, options.batches, 1, options.seed, independent=True, others=others)
    for chunk in draws:
        expression[chunk.rows] = chunk.expression[0].cpu().numpy()
    unit = np.repeat(np.arange(len(units.group)), options.n_pairs)
    return PairProbabilities(expression, unit, moments.n_cells)
