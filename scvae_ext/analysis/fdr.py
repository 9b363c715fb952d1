"""The false discovery rate to be expected of a list of genes."""

import numpy as np
from jaxtyping import Float

__all__ = ["expected_fdr"]


def expected_fdr(probability: Float[np.ndarray, "genes"]) -> Float[np.ndarray, "genes"]:
    r"""Return the expected share of false discoveries among each gene and all that are at least as probable.

    .. math:: \operatorname{FDR}(g) = \frac{\sum_{h:\,p_h \ge p_g} (1 - p_h)}{\#\{h: p_h \ge p_g\}}

    It rises as the probability falls, so that the genes with a value at or under a target are the longest list that
    meets it. Source: Newton, Noueiry, Sarkar and Ahlquist, Biostatistics 5, 155 (2004).

    Parameters
    ----------
    probability
        Posterior probability that a gene is a discovery.

    Examples
    --------
    >>> import numpy as np
    >>> expected_fdr(np.array([0.5, 1.0, 0.9])).round(3).tolist()
    [0.2, 0.0, 0.05]
    """
    order = np.argsort(-probability, kind="stable")
    ordered = probability[order]
    running = np.cumsum(1.0 - ordered) / np.arange(1, len(ordered) + 1)
    # Genes of equal probability stand or fall together.
    last = np.searchsorted(-ordered, -ordered, side="right") - 1
    result = np.empty_like(running)
    result[order] = running[last]
    return result
