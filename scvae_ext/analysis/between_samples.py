"""Groups compared with samples as the replicates: which samples, and whether there are enough."""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from scvae_ext.analysis.comparison import Comparison
from scvae_ext.analysis.estimates import summed
from scvae_ext.analysis.moments import GroupMoments
from scvae_ext.analysis.replicates import SampleContrast

__all__ = ["between_samples", "shortage_of_samples"]


def shortage_of_samples(comparison: Comparison, sample: Int[np.ndarray, "units"], names: Sequence[str]) -> str | None:
    """Return in words why a comparison has too few samples, or ``None`` where they suffice.

    Parameters
    ----------
    comparison
        Which units to compare.
    sample, names
        Sample of each unit, and the names of the samples.
    """
    in_one, in_two = (np.unique(sample[members]) for members in (comparison.one, comparison.two))
    if min(len(in_one), len(in_two)) >= 2:
        return None
    return (
        f"{comparison.name}: with sample_key, samples are the replicates, but {comparison.group1!r} has cells of "
        f"{_listed(in_one, names)} and {comparison.group2!r} of {_listed(in_two, names)}. Each group needs two "
        "samples at least. Leave sample_key out to take cells as replicates, which says nothing about new samples."
    )


def between_samples(
    moments: GroupMoments,
    comparison: Comparison,
    sample: Int[np.ndarray, "units"],
    names: Sequence[str],
    common_factor: bool,
) -> SampleContrast:
    """Compare two groups with samples as the replicates, within those that have cells of both where two do.

    Parameters
    ----------
    moments, comparison, sample, names, common_factor
        As for :func:`~scvae_ext.analysis.change_table`.

    Raises
    ------
    ValueError
        If there are too few samples.
    """
    shortage = shortage_of_samples(comparison, sample, names)
    if shortage is not None:
        raise ValueError(shortage)
    in_one, in_two = (np.unique(sample[members]) for members in (comparison.one, comparison.two))
    shared = np.intersect1d(in_one, in_two)
    paired = len(shared) >= 2
    left_out = np.setxor1d(in_one, in_two) if paired else shared
    if paired:
        in_one = in_two = shared
    if len(left_out):
        named = _listed(left_out, names)
        message = (
            f"{len(shared)} samples are compared within themselves; left out, for lack of cells of one group: {named}"
            if paired
            else f"cells of both groups come from {named}, and are taken as independent"
        )
        warnings.warn(f"{comparison.name}: {message}.", UserWarning, stacklevel=5)

    one, two = (
        summed(moments, (sample[None] == chosen[:, None]) & members[None], common_factor)
        for members, chosen in ((comparison.one, in_one), (comparison.two, in_two))
    )
    return SampleContrast.from_moments(one, two, paired=paired)


def _listed(samples: Int[np.ndarray, "chosen"], names: Sequence[str]) -> str:
    shown = ", ".join(repr(names[each]) for each in samples[:5])
    more = ", ..." if len(samples) > 5 else ""
    return f"{len(samples)} sample{'s' if len(samples) != 1 else ''} ({shown}{more})"
