"""Count distributions in the form of :mod:`torch.distributions`, exact in float32 and fast where counts are sparse."""

from torch.distributions import Normal

from scvae_ext.distributions.composition import SMALLEST_MEAN, Composition, LinearLogits
from scvae_ext.distributions.count import CountDistribution
from scvae_ext.distributions.mixture import Mixture
from scvae_ext.distributions.multinomial import sample_multinomial
from scvae_ext.distributions.negative_binomial import NegativeBinomial
from scvae_ext.distributions.poisson import Poisson
from scvae_ext.distributions.zero_inflated import ZeroInflated

__all__ = [
    "SMALLEST_MEAN",
    "Composition",
    "CountDistribution",
    "LinearLogits",
    "Mixture",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ZeroInflated",
    "sample_multinomial",
]
