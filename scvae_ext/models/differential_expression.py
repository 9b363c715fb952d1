"""Differential expression from a trained model: draws in, one table out."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.analysis import (
    GroupMoments,
    PairProbabilities,
    PosteriorDraws,
    TestMode,
    change_table,
    count_table,
    group_moments,
    rank_genes_groups,
)
from scvae_ext.analysis.differential_expression import FEWEST_CELLS
from scvae_ext.analysis.estimates import in_shared_batches
from scvae_ext.data import make_actual, record_result
from scvae_ext.models.cells import Cells
from scvae_ext.models.compared_cells import Units, large_enough
from scvae_ext.models.groups import Groups
from scvae_ext.models.results import require_key

__all__ = [
    "ChangeOptions",
    "DifferentialMode",
    "Draw",
    "compare_groups",
    "sorted_table",
    "warn_of_unmeasured",
    "write_ranking",
]

DifferentialMode = Literal["change", "vanilla"]
# Decimal places of a probability by which genes are put in order.
PLACES = 6
# Of cells, batches, number of draws and seed, as posterior_draws takes them after the module.
Draw: TypeAlias = Callable[..., Iterator[PosteriorDraws]]


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
    common_factor
        As for :func:`~scvae_ext.analysis.change_table`.
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
    common_factor: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(DifferentialMode):
            raise ValueError(f'mode={self.mode!r} is not known: use "change" or "vanilla".')
        for name, value in [("fdr_target", self.fdr_target), *(("cred_interval_lvls", each) for each in self.levels)]:
            if not 0 < value < 1:
                raise ValueError(f"{name}={value!r} must lie between 0 and 1, as 0.05 does.")
        if self.delta is not None and not _is_size(self.delta):
            raise ValueError(
                f"delta={self.delta!r} must be a log2 fold change: 0 for any difference, or None to choose it."
            )


def _is_size(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < np.inf


def compare_groups(
    draw: Draw, n_genes: int, cells: Cells, groups: Groups, units: Units, options: ChangeOptions
) -> dict[str, pd.DataFrame]:
    """Return a table for each comparison, one row a gene, in the order of the draws.

    Expression of each cell is decoded once, whatever the number of comparisons.

    Parameters
    ----------
    draw, n_genes
        Draws of genes, or of whatever takes their place, and their number.
    cells
        All cells of the AnnData.
    groups, units
        What to compare.
    options
        How.

    Raises
    ------
    ValueError
        If a group that was asked for has fewer than three cells or, where these are the replicates, two samples, or
        there is nothing to compare.
    """
    comparisons = large_enough(groups, units, options.leave_out_small)
    positions = np.flatnonzero(units.of_cell >= 0)
    used = replace(cells, positions=positions)

    def sums(batches: Sequence[int]) -> GroupMoments:
        draws = draw(used, batches, options.n_samples, options.seed)
        return group_moments(draws, units.of_cell[positions], len(units.group), n_genes)

    own = batch = None
    if units.batch is None:
        moments = sums(options.batches)
    else:
        moments = own = sums([])
        batch = np.where(np.isin(units.batch, options.batches), units.batch, -1)
        # Cells have to be decoded in other batches only where groups share none.
        if not all(in_shared_batches(own, comparison, batch)[1].all() for comparison in comparisons):
            moments = sums(options.batches)
    pairs = _pair_probabilities(draw, used, units, moments, options) if options.mode == "vanilla" else None
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
                own=own,
                batch=batch,
                test_mode=options.test_mode,
                levels=options.levels,
                common_factor=options.common_factor,
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
    """Return all comparisons in one table, the likeliest genes of each first, of equals those that go up.

    Parameters
    ----------
    tables
        The table of each.
    """
    parts = []
    for table in tables.values():
        keys = [table["bayes_factor"]]
        if "proba_de" in table:
            # Many are equal to one within a rounding error.
            keys = [table["proba_de"].round(PLACES), table["lfc_mean"] / table["lfc_std"]]
        order = np.lexsort([-key.to_numpy() for key in keys[::-1]])  # what is missing comes last
        parts.append(table.iloc[order])
    return pd.concat(parts)


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
    require_key(key)
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


def warn_of_unmeasured(tables: Mapping[str, pd.DataFrame], what: str) -> None:
    """Say what could not be compared, or stop where that is everything.

    Parameters
    ----------
    tables
        The table of each group.
    what
        What its rows are, in the singular.

    Raises
    ------
    ValueError
        If no comparison has a single row with a result.
    """
    missing = {group: list(table.index[table["proba_de"].isna()]) for group, table in tables.items()}
    reason = f"measured in fewer than {FEWEST_CELLS} cells of one side (or, with sample_key, not in all samples)"
    if all(len(missing[group]) == len(table) for group, table in tables.items()):
        raise ValueError(f"No {what} can be compared: each was {reason}.")
    for group, names in missing.items():
        if names:
            shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
            message = f"{tables[group]['comparison'].iloc[0]}: no result for {len(names)} {what}s ({shown}), {reason}."
            warnings.warn(message, UserWarning, stacklevel=4)


def _pair_probabilities(
    draw: Draw, cells: Cells, units: Units, moments: GroupMoments, options: ChangeOptions
) -> PairProbabilities:
    """Draw cells of each unit, and expression of each from its posterior."""
    generator = np.random.default_rng(options.seed)
    of_cell = units.of_cell[cells.positions]
    chosen = [generator.choice(cells.positions[of_cell == unit], options.n_pairs) for unit in range(len(units.group))]
    drawn = replace(cells, positions=np.concatenate(chosen))
    expression = np.empty((len(drawn), moments.expression.shape[1]), dtype=np.float32)
    for chunk in draw(drawn, options.batches, 1, options.seed, independent=True):
        expression[chunk.rows] = chunk.expression[0].cpu().numpy()
    unit = np.repeat(np.arange(len(units.group)), options.n_pairs)
    return PairProbabilities(expression, unit, moments.n_cells)
