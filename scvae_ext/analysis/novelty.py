"""How improbable a cell is: against replicates of its own depth, and among the cells that are known."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

__all__ = ["Novelty", "rank_among", "replicate_test"]

# Replicates from which a slope and a spread can be told.
FEWEST_REPLICATES = 10


@dataclass(frozen=True, eq=False, repr=False)
class Novelty:
    """How improbable cells are under a model.

    Parameters
    ----------
    elbo
        ELBO of each cell, in nats.
    expected_elbo
        What cells of the model have that are of the same depth, in nats.
    elbo_z
        Difference of the two over the standard deviation among cells of the model; below zero is improbable.
    elbo_p
        Share of cells of the model that are as improbable.
    latent_log_density
        Log density of the cell's state among the known cells, in nats.
    latent_p
        Share of known cells whose own surroundings are as empty.
    obs_names
        Names of the cells.
    """

    elbo: Float[np.ndarray, "cells"]
    expected_elbo: Float[np.ndarray, "cells"]
    elbo_z: Float[np.ndarray, "cells"]
    elbo_p: Float[np.ndarray, "cells"]
    latent_log_density: Float[np.ndarray, "cells"]
    latent_p: Float[np.ndarray, "cells"]
    obs_names: pd.Index

    @property
    def p(self) -> Float[np.ndarray, "cells"]:
        """Twice the smaller of the two probabilities (Bonferroni): small if either says that the cell is new."""
        smaller: Float[np.ndarray, cells] = np.minimum(1.0, 2.0 * np.minimum(self.elbo_p, self.latent_p))
        return smaller

    def to_frame(self) -> pd.DataFrame:
        """Return one row a cell."""
        names = ["elbo", "expected_elbo", "elbo_z", "elbo_p", "latent_log_density", "latent_p", "p"]
        return pd.DataFrame({name: getattr(self, name) for name in names}, index=self.obs_names)

    def summary(self) -> str:
        """Return the result in plain words."""
        n = len(self.elbo)
        shares = {name: 100 * float(np.mean(getattr(self, name) <= 0.05)) for name in ("elbo_p", "latent_p", "p")}
        return (
            f"{n} cells. At a level of 5 % that many are improbable: {shares['elbo_p']:.1f} % by their ELBO, against "
            f"cells of the model with as many counts; {shares['latent_p']:.1f} % by their state, against known cells; "
            f"{shares['p']:.1f} % by either (Bonferroni). 5 % are expected of cells that the model describes."
        )

    def __repr__(self) -> str:
        return self.summary()


def replicate_test(
    score: Float[np.ndarray, "cells"],
    log_total: Float[np.ndarray, "cells"],
    replicate_score: Float[np.ndarray, "replicates cells"],
    replicate_log_total: Float[np.ndarray, "replicates cells"],
) -> tuple[Float[np.ndarray, "cells"], Float[np.ndarray, "cells"], Float[np.ndarray, "cells"]]:
    r"""Compare a score of each cell with that of replicates, at the same total count.

    A score that is a log-likelihood falls with the total count. Where replicates of a cell all have its total, scores
    are compared as they are. Where they scatter about it, both are put at the same total by a regression of scores on
    log totals. A cell that the line was fitted to lies closer to it than another, and the closer the further out its
    total is: therefore z is by the error of a prediction, and p by one regression of the cell and its R replicates
    together, :math:`r_i = e_i / \sqrt{1 - h_i}` with its residuals and leverages,

    .. math:: z = \frac{s_0 - \hat s_0}{\hat\sigma \sqrt{1 + h}}, \qquad
              \hat\sigma^2 = \frac{\sum_r (s_r - \hat s_r)^2}{R - 4}, \qquad
              p = \frac{1 + \#\{r: r_r \le r_0\}}{R + 1}

    with the line :math:`\hat s` and the leverage h of the cell in a regression of the replicates alone. For a cell that
    is drawn as its replicates are, p is uniform. Where scores are normal, z is Student's t with R - 2 degrees of
    freedom, over its standard deviation, so that it has mean zero and standard deviation one. With one total there is
    no slope: h is 1/R, and R - 3 and R - 1 take the places of R - 4 and R - 2.

    Parameters
    ----------
    score, log_total
        Of the cells.
    replicate_score, replicate_log_total
        Of the replicates of each.

    Returns
    -------
    tuple
        Mean of the replicates at the cell's total; distance from it in standard deviations; p.

    Raises
    ------
    ValueError
        If there are fewer than ten replicates.
    """
    n_replicates = len(replicate_score)
    if n_replicates < FEWEST_REPLICATES:
        raise ValueError(f"{n_replicates} replicates are too few: {FEWEST_REPLICATES} at least are needed.")
    centre, mean = replicate_log_total.mean(0), replicate_score.mean(0)
    of_total, of_score, away = replicate_log_total - centre, replicate_score - mean, log_total - centre
    scatter = np.square(of_total).sum(0)
    # Without scatter there is no slope, and nothing to be far from; what rounding of a mean leaves is none.
    has_slope = (scatter > 0) & (replicate_log_total != replicate_log_total[0]).any(0)
    per_scatter = np.divide(1.0, scatter, out=np.zeros_like(scatter), where=has_slope)
    slope = per_scatter * (of_total * of_score).sum(0)
    residual = of_score - slope * of_total
    expected = mean + slope * away
    difference = score - expected
    variance = 1 + 1 / n_replicates + per_scatter * np.square(away)
    sd = np.sqrt(np.square(residual).sum(0) * variance / (n_replicates - 3 - has_slope))
    z = np.divide(difference, sd, out=np.zeros_like(sd), where=sd > 0)
    # Residuals and leverages with the cell as a further point, by what it changes.
    pull = 1 / n_replicates + per_scatter * away * of_total
    residual -= pull * difference / variance
    spared = 1 - 1 / n_replicates - per_scatter * np.square(of_total) + np.square(pull) / variance
    residual /= np.sqrt(np.maximum(spared, np.finfo(spared.dtype).eps))
    p = (1 + (residual <= difference / np.sqrt(variance)).sum(0)) / (n_replicates + 1)
    return expected, z, p


def rank_among(
    value: Float[np.ndarray, "cells"],
    reference: Float[np.ndarray, "known"],
) -> Float[np.ndarray, "cells"]:
    r"""Return the share of reference values that are no larger, :math:`(1 + \#\{m: d_m \le d\}) / (M + 1)`.

    Uniform where value and reference are exchangeable: a conformal p-value (Vovk, Gammerman and Shafer, 2005).

    Parameters
    ----------
    value, reference
        What to rank, and among what.
    """
    below = np.searchsorted(np.sort(reference), value, side="right")
    share: Float[np.ndarray, cells] = np.minimum((1 + below) / (len(reference) + 1), 1.0)
    return share
