"""What further fits of a model say about zero inflation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Float

from scvae_ext.diagnostics.evidence import evidence
from scvae_ext.models import SCVAE
from scvae_ext.models.query import CellSelection

__all__ = ["Refits", "refit"]


@dataclass(frozen=True, eq=False)
class Refits:
    """Fits of the same model with other seeds, and of its counterpart with or without zero inflation.

    Parameters
    ----------
    pi
        Best pi of each fit, the first that of the model itself.
    likelihood_ratio
        Twice the log-likelihood that pi gains, the smallest of the refits.
    model_pi
        Mean over cells of the pi that each fit of a zero-inflated model has itself; ``None`` for others.
    inflated_gain, inflated_gain_error
        Held-out evidence of the zero-inflated fit minus that of the other, in nats per cell, and the standard error of
        the mean over cells.
    """

    pi: Float[np.ndarray, "fits genes"]
    likelihood_ratio: Float[np.ndarray, "genes"]
    model_pi: Float[np.ndarray, "fits genes"] | None
    inflated_gain: float
    inflated_gain_error: float

    @property
    def pi_spread(self) -> Float[np.ndarray, "genes"]:
        """Standard deviation over fits of the best pi of each gene."""
        spread: np.ndarray = self.pi.std(0, ddof=1)
        return spread

    def summary(self) -> str:
        """Return the result in plain words."""
        text = (
            f"Over {len(self.pi)} fits with other seeds the best pi of a gene has a standard deviation of "
            f"{np.mean(self.pi_spread):.2g} on average"
        )
        if self.model_pi is not None:
            text += (
                f"; the fits themselves put the mean pi of genes at {self.model_pi.mean():.2g}, with a standard "
                f"deviation of {np.mean(self.model_pi.std(0, ddof=1)):.2g}"
            )
        return (
            f"{text}. Fitted as a whole, the zero-inflated model has {self.inflated_gain:+.2f} nats per cell of "
            f"held-out evidence over the negative binomial (standard error {self.inflated_gain_error:.2g})."
        )


def refit(
    model: SCVAE,
    adata: AnnData | None,
    indices: CellSelection | None,
    pi: Float[np.ndarray, "genes"],
    n_refits: int,
    train_options: Mapping[str, Any],
    ask: Callable[[SCVAE], tuple[Float[np.ndarray, "genes"], Float[np.ndarray, "genes"]]],
) -> Refits:
    """Fit the model again with other seeds, and once with its zero inflation added or removed.

    Parameters
    ----------
    model
        The model.
    adata, indices
        Cells that the question is about.
    pi
        Best pi of each gene by the model itself.
    n_refits
        Number of further fits.
    train_options
        Arguments of ``train``.
    ask
        Gives likelihood ratio and best pi of each gene by another model.
    """
    is_inflated = model._options["gene_likelihood"] == "zinb"
    ratios, pis, own = [], [pi], [_own_pi(model, adata, indices)] if is_inflated else []
    for number in range(1, n_refits + 1):
        other = _trained(model, model._options, model.seed + number, train_options)
        ratio, best = ask(other)
        ratios.append(ratio)
        pis.append(best)
        if is_inflated:
            own.append(_own_pi(other, adata, indices))
    change: dict[str, Any] = {"gene_likelihood": "zinb", "zero_inflation": "gene"}
    if is_inflated:
        change = {"gene_likelihood": "nb", "zero_inflation": "gene-cell", "zero_inflation_prior": None}
    counterpart = _trained(model, {**model._options, **change}, model.seed, train_options)
    gain = np.subtract(*(evidence(each, adata, indices).log_evidence for each in (model, counterpart)))
    if not is_inflated:
        gain = -gain
    return Refits(
        pi=np.stack(pis),
        likelihood_ratio=np.min(ratios, axis=0),
        model_pi=np.stack(own) if is_inflated else None,
        inflated_gain=float(gain.mean()),
        inflated_gain_error=float(gain.std(ddof=1) / np.sqrt(len(gain))),
    )


def _trained(model: SCVAE, options: Mapping[str, Any], seed: int, train_options: Mapping[str, Any]) -> SCVAE:
    """Return a new model, trained on the cells that the given one was trained on."""
    other = model._sibling(model.adata, options, seed)
    other.train_indices, other.validation_indices = model.train_indices, model.validation_indices
    other.test_indices = model.test_indices
    other.train(**{"enable_progress_bar": False, **train_options})
    other._require_whole_training()
    return other


def _own_pi(model: SCVAE, adata: AnnData | None, indices: CellSelection | None) -> Float[np.ndarray, "genes"]:
    pi: np.ndarray = model.get_likelihood_parameters(adata, indices)["dropout"].mean(0)
    return pi
