"""Counts that cells would have shown under covariates other than their own."""

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor
from torch.distributions import Distribution

from scvae_ext.distributions import NegativeBinomial, Poisson, ZeroInflated
from scvae_ext.models.cells import Cells
from scvae_ext.models.settings import Setting
from scvae_ext.modules import VAE
from scvae_ext.random_state import seeded

__all__ = ["abducted_counts", "counts_under", "transported_noise"]

# Values in single precision that what is held for one count takes the memory of, where noise is transported.
VALUES_OF_NOISE = 8
# Of noise further out, next to which no cell that the model describes lies, the rank is that of this tail.
SMALLEST_TAIL = 1e-300
# Beyond this rank noise goes by the upper tail, whose share the rank holds with too few digits.
UPPER_TAIL_FROM = 0.9
# Below this x, the share below it in a Gamma distribution is the first term of its series, and can be had of log x.
FIRST_TERM_BELOW = 1e-100


def abducted_counts(
    module: VAE,
    cells: Cells,
    setting: Setting,
    genes: Int[np.ndarray, "chosen"] | None,
    n_samples: int,
    seed: int,
    shift: Float[np.ndarray, "cells state"] | None = None,
) -> tuple[sp.csr_matrix, ...]:
    r"""Draw the counts that the same cells would have shown under a setting.

    A count is the outcome of the state z, which is abducted from what was seen, :math:`z \sim q(z \mid x)`, and of
    noise: see :func:`counts_under`.

    Parameters
    ----------
    module, cells, setting
        Of what.
    genes
        Positions of the genes, or ``None`` for all.
    n_samples, seed
        Number of draws of each cell, and their seed.
    shift
        What is added to the state of each cell under the setting.
    """
    draws: list[list[sp.csr_matrix]] = [[] for _ in range(n_samples)]
    columns = None if genes is None else torch.from_numpy(genes)
    cells = cells.limited(max(cells.source.n_features, VALUES_OF_NOISE * cells.source.n_genes))
    with seeded(seed):  # torch's Gamma and Poisson draw from the default generator alone
        for rows, minibatch in cells:
            move = 0.0 if shift is None else torch.from_numpy(shift[rows]).to(cells.device)
            posterior, changed = module.encode(minibatch), setting.apply(minibatch)
            seen = minibatch.counts.dense()
            for of_sample in draws:
                latent = torch.normal(posterior.qz.loc, posterior.qz.scale)
                library = posterior.log_library
                log_library = None if library is None else torch.normal(library.loc, library.scale)
                factual = module.decode(latent, minibatch, log_library)
                other = module.decode(latent + move, changed, log_library)
                counts = counts_under(other, factual, seen).cpu()
                of_sample.append(sp.csr_matrix((counts if columns is None else counts[:, columns]).numpy()))
    return tuple(sp.vstack(of_sample, format="csr") for of_sample in draws)


def counts_under(
    other: Distribution, factual: Distribution, seen: Float[Tensor, "cells genes"]
) -> Float[Tensor, "cells genes"]:
    r"""Draw the counts that would have been seen under another distribution, given those that were.

    A negative binomial count is a Poisson count of the rate :math:`\mu u`, where
    :math:`u \sim \operatorname{Gamma}(\theta, \theta)` is what makes it overdispersed. The noise is abducted,
    :math:`u \mid x \sim \operatorname{Gamma}(\theta + x, \theta + \mu)`, and keeps its rank among cells,

    .. math:: u' = F_{\theta'}^{-1}(F_\theta(u)),

    with :math:`F_\theta` the distribution function of :math:`\operatorname{Gamma}(\theta, \theta)`. It is the same
    where :math:`\theta' = \theta`, and otherwise has the variance of the other distribution (of all couplings of the
    two, this is the comonotone one). The molecules themselves are kept as far as the rate allows:

    .. math:: x' \mid x, u \sim \begin{cases} \operatorname{Binomial}(x, \mu' u' / \mu u) & \mu' u' \le \mu u \\
              x + \operatorname{Poisson}(\mu' u' - \mu u) & \mu' u' > \mu u \end{cases}

    Thinned and superposed Poisson counts are Poisson counts, so that :math:`x' \mid u` is one of the rate
    :math:`\mu' u'`, and over cells x' is distributed as the other distribution says, if x is as the factual one does.

    A zero-inflated count is an extra zero where :math:`v < \pi`, with v uniform. Whether a zero was one is abducted,
    then v; under the other distribution it is one where :math:`v < \pi'`. An extra zero says nothing about what it
    hides, whose noise is then a draw of the prior and whose molecules are drawn where they show.

    Parameters
    ----------
    other, factual
        Distributions of the counts under the setting and as observed, of the same family.
    seen
        The counts that were observed.

    Raises
    ------
    TypeError
        If the distributions are not of counts.

    References
    ----------
    Pearl, Causality (2009), section 7.1: abduction, action, prediction.
    """
    before, after = _base(factual).mean, _base(other).mean
    will_be_extra = None
    if isinstance(factual, ZeroInflated) and isinstance(other, ZeroInflated):
        is_extra, will_be_extra = _extra_zeros(factual, other, seen)
        before = before.masked_fill(is_extra, 0)
    noise, of_other = _abducted_noise(_base(factual), _base(other), seen, before)
    # Without molecules there are none to keep, whatever the quotient.
    share = torch.where(seen > 0, after / before * (of_other / noise), 1).clamp_max(1)
    gained = torch.poisson((after * of_other - before * noise).clamp_min(0))
    counts = torch.binomial(seen, share) + gained
    return counts if will_be_extra is None else counts.masked_fill(will_be_extra, 0)


def _base(px: Distribution) -> Distribution:
    """Return the distribution of the counts, extra zeros left out."""
    base: Distribution = px.base if isinstance(px, ZeroInflated) else px
    return base


def _extra_zeros(
    factual: ZeroInflated, other: ZeroInflated, seen: Float[Tensor, "cells genes"]
) -> tuple[Bool[Tensor, "cells genes"], Bool[Tensor, "cells genes"]]:
    """Draw which counts are extra zeros given the counts, and which would be."""
    of_zeros = torch.nn.functional.logsigmoid(factual.zero_inflation_logits) - factual.log_prob_zero()
    is_extra = (seen == 0) & (torch.rand_like(seen).log() < of_zeros)
    pi, uniform = factual.zero_inflation_probability, torch.rand_like(seen)
    level = torch.where(is_extra, pi * uniform, pi + (1 - pi) * uniform)
    return is_extra, level < other.zero_inflation_probability


def _abducted_noise(
    factual: Distribution,
    other: Distribution,
    seen: Float[Tensor, "cells genes"],
    mean: Float[Tensor, "cells genes"],
) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells genes"]]:
    """Return a draw of what multiplied the mean, given the counts, and what will multiply that of the other."""
    if isinstance(factual, Poisson):
        return (torch.ones_like(seen),) * 2
    if not (isinstance(factual, NegativeBinomial) and isinstance(other, NegativeBinomial)):
        raise TypeError(f"{type(factual).__name__} is no distribution of counts.")
    differs = factual.inverse_dispersion != other.inverse_dispersion
    theta = factual.inverse_dispersion.expand_as(seen)
    noise = torch._standard_gamma(theta + seen) / (theta + mean)
    if not differs.any():
        return noise, noise
    # On the host and in double precision: only SciPy inverts the incomplete gamma function. Of a tiny theta most noise
    # is too small for any number, but its logarithm is not: Gamma(a) = Gamma(a + 1) U^(1 / a).
    differs = differs.expand_as(seen)
    given = (theta, other.inverse_dispersion.expand_as(seen), seen, mean)
    before, after, counts, means = (values[differs].cpu().double() for values in given)
    shape = before + counts
    log_uniform = -torch.empty_like(shape).exponential_()
    log_noise = torch._standard_gamma(shape + 1).log() + log_uniform / shape - (before + means).log()
    moved = torch.from_numpy(transported_noise(log_noise.numpy(), before.numpy(), after.numpy()))
    pair = noise, noise.clone()
    for values, drawn in zip(pair, (log_noise.exp(), moved), strict=True):
        values[differs] = drawn.to(values.dtype).to(values.device)
    return pair


def transported_noise(
    log_noise: Float[np.ndarray, "counts"], theta: Float[np.ndarray, "counts"], other: Float[np.ndarray, "counts"]
) -> Float[np.ndarray, "counts"]:
    r"""Return noise of mean one and another variance, that has the same rank.

    The one increasing map :math:`F_{\theta'}^{-1} \circ F_\theta` from
    :math:`\operatorname{Gamma}(\theta, \theta)` onto :math:`\operatorname{Gamma}(\theta', \theta')`.

    Parameters
    ----------
    log_noise
        Logarithm of the noise, in double precision.
    theta, other
        :math:`\theta` and :math:`\theta'`, the inverses of the variances.
    """
    log_scaled = np.log(theta) + log_noise
    scaled = np.exp(log_scaled)
    log_first_term = np.minimum(theta * log_scaled - special.gammaln(theta + 1), 0)
    is_first_term = scaled < FIRST_TERM_BELOW
    below = np.where(is_first_term, np.exp(log_first_term), special.gammainc(theta, scaled))
    above = np.where(is_first_term, -np.expm1(log_first_term), 0)
    is_upper = below > UPPER_TAIL_FROM
    is_inexact = is_upper & ~is_first_term
    above[is_inexact] = special.gammaincc(theta[is_inexact], scaled[is_inexact])
    moved: np.ndarray = np.empty_like(scaled)
    for wanted, inverse, tail in ((~is_upper, special.gammaincinv, below), (is_upper, special.gammainccinv, above)):
        moved[wanted] = inverse(other[wanted], tail[wanted].clip(SMALLEST_TAIL))
    moved /= other
    return moved
