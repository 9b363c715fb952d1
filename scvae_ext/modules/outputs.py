"""What modules return, as types rather than dictionaries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Normal

from scvae_ext.types import CellValues

__all__ = ["Elbo", "Objective", "Posterior", "SquaredError", "VAEOutput"]


@dataclass(frozen=True)
class Posterior:
    """Variational posterior of some cells.

    Parameters
    ----------
    qz
        Diagonal Gaussian over the latent coordinates, before any map onto the simplex, and the residual factors behind
        them.
    log_library
        Gaussian over the log library size, or ``None`` where the library size is observed.
    """

    qz: Normal
    log_library: Normal | None


@dataclass(frozen=True)
class VAEOutput:
    """One forward pass; every tensor may carry leading axes of samples.

    Parameters
    ----------
    posterior
        What the encoder found.
    latent
        Sample of ``posterior.qz``.
    log_library
        Sample of the log library size, or ``None`` where it is observed.
    px
        Likelihood of the genes at the sample.
    log_prob_others
        Log-probability, at the sample and in nats, of what was observed of each cell beside its genes: ``"proteins"``,
        ``"accessibility"``, ``"labels"``.
    """

    posterior: Posterior
    latent: Float[Tensor, "*samples cells latent"]
    log_library: Float[Tensor, "*samples cells"] | None
    px: Distribution
    log_prob_others: Mapping[str, Float[Tensor, "*samples cells"]] = field(default_factory=dict)


class Objective(ABC):
    """A score per cell that training maximises, and the terms that it is made of."""

    @abstractmethod
    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> Float[Tensor, "*samples cells"]:
        """Return the score of each cell; higher is better.

        Parameters
        ----------
        kl_weight
            Weight of the divergence from the prior, one for the honest score.
        penalty_share
            Share of penalties beside the bound, where there are any, that counts; one for the honest score.
        """

    @abstractmethod
    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        """Return the unweighted score and its terms, per cell, under the names of the history's columns."""


@dataclass(frozen=True)
class Elbo(Objective):
    r"""Evidence lower bound of each cell, in nats.

    .. math:: \mathcal L = \mathbb E_q[\log p(x \mid z)] - \operatorname{KL}(q(z \mid x) \,\|\, p(z))
              - \operatorname{KL}(q(\ell \mid x) \,\|\, p(\ell))

    Parameters
    ----------
    reconstruction
        Log-likelihood at the sample, of genes and of what was observed beside them.
    kl
        Divergence of the latent posterior from its prior; at each sample where it has no closed form.
    kl_library
        Divergence of the library size's posterior from its prior, or ``None`` where the library size is observed.
    reconstruction_others
        What of the reconstruction is not of genes, by name.
    """

    reconstruction: Float[Tensor, "*samples cells"]
    kl: Float[Tensor, "*#samples cells"]
    kl_library: CellValues | None = None
    reconstruction_others: Mapping[str, Float[Tensor, "*samples cells"]] = field(default_factory=dict)

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> Float[Tensor, "*samples cells"]:
        score = self.reconstruction - kl_weight * self.kl
        return score if self.kl_library is None else score - self.kl_library

    def terms(self) -> dict[str, Float[Tensor, "*samples cells"]]:
        terms = {"elbo": self.score(), "reconstruction": self.reconstruction, "kl": self.kl}
        if self.kl_library is not None:
            terms["kl_library"] = self.kl_library
        return terms | {f"reconstruction_{name}": values for name, values in self.reconstruction_others.items()}


@dataclass(frozen=True)
class SquaredError(Objective):
    """Mean squared error of each cell's log-normalised values over genes.

    Parameters
    ----------
    mse
        The error; lower is better.
    """

    mse: CellValues

    def score(self, kl_weight: float = 1.0, penalty_share: float = 1.0) -> CellValues:
        return -self.mse

    def terms(self) -> dict[str, CellValues]:
        return {"mse": self.mse}
