"""Which likelihood the data support, by the evidence of cells that no model was trained on."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int

from scvae_ext.diagnostics._models import others_than
from scvae_ext.diagnostics.evidence import Evidence, evidence
from scvae_ext.diagnostics.posterior_predictive_check import PosteriorPredictiveCheck, posterior_predictive_check
from scvae_ext.diagnostics.rounded_normal import on_scale_of_counts
from scvae_ext.likelihoods import GeneLikelihood
from scvae_ext.models import SCVAE
from scvae_ext.models.options import whole_number

__all__ = ["LikelihoodComparison", "compare_likelihoods"]

# Parameters that the distribution of a count has.
N_PARAMETERS: Mapping[str, int] = MappingProxyType({"poisson": 1, "nb": 2, "normal": 2, "zinb": 3})
# Options that have a meaning for some likelihoods alone.
OPTIONS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dispersion": ("nb", "zinb", "normal"),
        "zero_inflation": ("zinb",),
        "zero_inflation_prior": ("zinb",),
    }
)
OWN_OPTIONS = ("adata", "gene_likelihood", "seed")


@dataclass(frozen=True, eq=False, repr=False)
class LikelihoodComparison:
    """Held-out evidence and predictive checks of models that differ in their likelihood alone.

    Parameters
    ----------
    evidence
        Of the same held-out cells, by likelihood; all in nats on the scale of probabilities of counts.
    checks
        Posterior predictive check of the same cells, by likelihood.
    models
        The trained models, of several fits the one of the best validation.
    validation
        Best validation ELBO of every fit of each likelihood, in nats per cell; that of ``"normal"`` is a density.
    least_gain
        Nats per cell that a likelihood with more parameters has to gain.
    """

    evidence: dict[str, Evidence]
    checks: dict[str, PosteriorPredictiveCheck]
    models: dict[str, SCVAE]
    validation: dict[str, list[float]]
    least_gain: float

    @property
    def best(self) -> str:
        """Likelihood of the highest mean evidence."""
        return max(self.evidence, key=lambda name: self.evidence[name].mean)

    @property
    def supported(self) -> str:
        """Likelihood that the data support.

        That of the highest evidence, unless one with fewer parameters comes close: within two standard errors, or
        within :attr:`least_gain`. Of those that come close it is the one with the fewest parameters, and of these the
        one with the highest evidence.
        """
        close = [name for name in self.evidence if name == self.best or self._comes_close(name)]
        return min(close, key=lambda name: (N_PARAMETERS[name], -self.evidence[name].mean))

    def _comes_close(self, name: str) -> bool:
        if N_PARAMETERS[name] >= N_PARAMETERS[self.best]:
            return False
        gain, error = self.difference(self.best, name)
        return gain <= max(2 * error, self.least_gain)

    def difference(self, first: str, second: str) -> tuple[float, float]:
        """Return by how much the evidence of one likelihood is higher than that of another, and its standard error.

        The mean of the differences of each cell, in nats per cell, and the standard deviation of these differences
        over the square root of the number of cells. It covers the choice of held-out cells and the Monte Carlo error,
        not how another training would have come out.

        Parameters
        ----------
        first, second
            Names of the likelihoods.
        """
        per_cell = self.evidence[first].log_evidence - self.evidence[second].log_evidence
        return float(per_cell.mean()), float(per_cell.std(ddof=1) / math.sqrt(len(per_cell)))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each likelihood, by descending evidence.

        ``difference`` is to the supported likelihood, in nats per cell, with its paired ``standard_error``.
        ``spread_of_fits`` is the validation ELBO of the best fit minus that of the worst.
        ``n_untrusted`` counts the cells whose evidence has too small an effective sample size. The other columns are
        shares of testable genes whose replicated variance or zeros are too low or too high.
        """
        rows = {}
        for name in sorted(self.evidence, key=lambda name: -self.evidence[name].mean):
            difference, error = self.difference(name, self.supported)
            check = self.checks[name]
            shares = {
                f"{statistic}_{side}": _share(check, statistic, side)
                for statistic in ("variance", "zeros")
                for side in ("too_low", "too_high")
            }
            rows[name] = {
                "log_evidence": self.evidence[name].mean,
                "difference": difference,
                "standard_error": error,
                "n_parameters": N_PARAMETERS[name],
                "is_supported": name == self.supported,
                "spread_of_fits": max(self.validation[name]) - min(self.validation[name]),
                "n_untrusted": int(np.count_nonzero(~self.evidence[name].is_trusted)),
                **shares,
            }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "likelihood"
        return frame

    @property
    def verdict(self) -> str:
        """What the data support, in one sentence."""
        supported = self.supported
        others = [name for name in self.to_frame().index if name != supported]
        words = []
        for name in others:
            difference, error = self.difference(name, supported)
            change = f"{name} {'gains' if difference > 0 else 'loses'} {abs(difference):.2f} ± {error:.2f}"
            if difference > self.least_gain:
                change += " (within two standard errors)"
            elif difference > 0:
                change += f" (less than the {self.least_gain:g} asked for)"
            words.append(change)
        n_cells = len(self.evidence[supported].obs_names)
        return (
            f"The data support {supported}: {self.evidence[supported].mean:.2f} nats per held-out cell "
            f"({n_cells} cells), against which {', '.join(words)}."
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        doubtful = {
            name: int(np.count_nonzero(~score.is_trusted))
            for name, score in self.evidence.items()
            if not score.is_trusted.all()
        }
        lines = [self.verdict]
        if doubtful:
            cells = ", ".join(f"{name} in {count}" for name, count in doubtful.items())
            lines.append(f"Evidence is likely too low, for want of samples that count, for {cells} cells.")
        n_fits = len(self.validation[self.supported])
        if n_fits > 1:
            spread = ", ".join(f"{name} {max(fits) - min(fits):.2f}" for name, fits in self.validation.items())
            lines.append(f"Validation ELBO of the best of {n_fits} fits minus that of the worst: {spread}.")
        return "\n".join([*lines, *(f"{name}: {check.verdict}" for name, check in self.checks.items())])

    def __repr__(self) -> str:
        return self.summary()


def _share(check: PosteriorPredictiveCheck, statistic: str, side: str) -> float:
    """Return the share of testable genes of which replicates are off to a side; NaN if none is testable."""
    wrong: np.ndarray = getattr(check.genes[statistic], f"is_{side}")[check.is_testable]
    return float(wrong.mean()) if len(wrong) else math.nan


def compare_likelihoods(
    adata: AnnData,
    likelihoods: Sequence[GeneLikelihood] = ("poisson", "nb", "zinb", "normal"),
    *,
    model_options: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    train_size: float = 0.8,
    validation_size: float = 0.1,
    batch_size: int = 128,
    accelerator: str = "auto",
    enable_progress_bar: bool = True,
    n_fits: int = 3,
    n_samples: int = 1000,
    n_replicates: int = 100,
    least_gain: float = 1.0,
    seed: int = 0,
) -> LikelihoodComparison:
    r"""Train a model with each likelihood, and compare how well they predict the same held-out cells.

    All models see the same training cells, choose their weights on the same validation cells, and are compared on the
    rest, by the evidence :math:`\log p(x) = \log \int p(x \mid z)\,p(z)\,dz` that :func:`evidence` estimates. The
    difference of two likelihoods is a mean over cells, and its standard error is that of the differences of each cell.

    The normal likelihood gives a density of log-normalised values. A Jacobian would make it one of counts, but a
    density is no probability, and at a count of zero, which most are, it can be made as large as one likes by a small
    :math:`\sigma`. It is compared by the probability that it gives to the interval which rounds to the observed count,

    .. math::
        P(x) = \Phi\left(\frac{t(x + \frac12) - \mu}{\sigma}\right)
             - \Phi\left(\frac{t(x - \frac12) - \mu}{\sigma}\right), \qquad
        t(x) = \log\left(1 + 10^4 x / \ell\right),

    with all below :math:`t(\frac12)` for zero. These probabilities sum to one over counts, as those of the other
    likelihoods do. The model is trained on the density all the same, as this likelihood is used.

    The rule of the verdict: the data support the likelihood of the highest evidence, unless one with fewer parameters a
    count (Poisson one, nb and normal two, zinb three) comes within two standard errors of it, or within ``least_gain``
    nats per cell. Standard errors cover the choice of held-out cells, not the chance of training, which is often
    larger: fits that differ in their initial weights can end several nats apart. So each likelihood is fitted
    ``n_fits`` times, and the fit with the best ELBO on the validation cells stands for it. The result gives the spread
    of the fits. Differences between likelihoods that are smaller than this spread deserve more fits.

    Each model is also put to :func:`posterior_predictive_check` on the same cells, to see what it gets wrong.

    Parameters
    ----------
    adata
        AnnData that :meth:`~scvae_ext.SCVAE.setup_anndata` was called on. It is not changed.
    likelihoods
        At least two of ``"poisson"``, ``"nb"``, ``"zinb"`` and ``"normal"``.
    model_options
        Options of :class:`~scvae_ext.SCVAE` for all models. ``dispersion`` is left out for ``"poisson"``, and options
        of zero inflation for all but ``"zinb"``.
    max_epochs, max_steps, batch_size, accelerator, enable_progress_bar
        As for :meth:`~scvae_ext.SCVAE.train`.
    train_size, validation_size
        Shares of the cells to train on and to choose the best weights by; the models are compared on the others.
    n_fits
        Fits of each likelihood from other initial weights, of which the best by validation is compared.
    n_samples
        Samples of each cell for the evidence.
    n_replicates
        Replicated data sets of the predictive checks.
    least_gain
        Nats per cell that a likelihood with more parameters has to gain.
    seed
        Seed of the split, of weights, of training and of all samples.

    Returns
    -------
    LikelihoodComparison
        In nats per cell.

    Raises
    ------
    ValueError
        If a likelihood is unknown or named twice, fewer than two cells are left to compare on, or an option is not
        valid.
    TypeError
        If an option of the models is unknown.

    Warns
    -----
    UserWarning
        If the effective sample size of a cell is below ten, as :func:`evidence` does, with the name of the likelihood.

    See Also
    --------
    scvae_ext.pl.compare_likelihoods : Draw the result.
    """
    names = _checked(likelihoods)
    options = others_than(OWN_OPTIONS, model_options, "compare_likelihoods")
    if isinstance(least_gain, bool) or not (math.isfinite(least_gain) and least_gain >= 0):
        raise ValueError(f"least_gain={least_gain!r} must be a number of nats per cell, at least 0.")
    n_fits = whole_number("n_fits", n_fits)
    seed = whole_number("seed", seed, least=0)
    whole_number("n_samples", n_samples, least=Evidence.trusted_from)
    whole_number("n_replicates", n_replicates, least=40)
    if validation_size <= 0 or train_size + validation_size >= 1:
        raise ValueError(
            f"train_size={train_size!r} and validation_size={validation_size!r} must leave cells to compare on: "
            "pass two shares above 0 whose sum is below 1."
        )
    # All models are built before any is trained, so that a mistake costs no time.
    fits: dict[str, list[SCVAE]] = {
        name: [
            SCVAE(
                adata,
                gene_likelihood=name,
                seed=seed + fit,
                **{key: value for key, value in options.items() if name in OPTIONS_OF.get(key, names)},
            )
            for fit in range(n_fits)
        ]
        for name in names
    }
    models: dict[str, SCVAE] = {}
    scores: dict[str, Evidence] = {}
    checks: dict[str, PosteriorPredictiveCheck] = {}
    validation: dict[str, list[float]] = {}
    for name in names:
        for model in fits[name]:
            model.train(
                max_epochs,
                accelerator,
                train_size=train_size,
                validation_size=validation_size,
                batch_size=batch_size,
                max_steps=max_steps,
                seed=seed,
                enable_progress_bar=enable_progress_bar,
            )
            model._require_whole_training()
            held_out = _held_out(model, train_size, validation_size)
        validation[name] = [float(model.history["elbo_validation"].max()) for model in fits[name]]
        models[name] = model = fits[name][int(np.argmax(validation[name]))]
        scores[name] = _evidence(name, model, held_out, n_samples, seed)
        checks[name] = posterior_predictive_check(model, indices=held_out, n_samples=n_replicates, seed=seed)
    return LikelihoodComparison(scores, checks, models, validation, float(least_gain))


def _checked(likelihoods: Sequence[GeneLikelihood]) -> list[GeneLikelihood]:
    """Return the names of the likelihoods, each of them known and named once."""
    known = ", ".join(map(repr, get_args(GeneLikelihood)))
    if isinstance(likelihoods, str):
        raise ValueError(f"likelihoods={likelihoods!r} is one string: pass a list of at least two of {known}.")
    names = list(likelihoods)
    for name in names:
        if name not in N_PARAMETERS:
            raise ValueError(f"likelihoods holds {name!r}, which is not known: use {known}.")
        if names.count(name) > 1:
            raise ValueError(f"likelihoods names {name!r} more than once: pass each once.")
    if len(names) < 2:
        raise ValueError(f"likelihoods={names!r} leaves nothing to compare: pass at least two of {known}.")
    return names


def _held_out(model: SCVAE, train_size: float, validation_size: float) -> Int[np.ndarray, "cells"]:
    """Return the cells that the model was neither trained nor validated on."""
    held_out = model.test_indices
    if held_out is None or len(held_out) < 2:
        raise ValueError(
            f"train_size={train_size!r} and validation_size={validation_size!r} leave "
            f"{0 if held_out is None else len(held_out)} of {model.adata.n_obs} cells to compare on: at least two are "
            "needed."
        )
    return held_out


def _evidence(name: str, model: SCVAE, cells: np.ndarray, n_samples: int, seed: int) -> Evidence:
    """Estimate the evidence of counts; warnings say which likelihood they are about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evidence(on_scale_of_counts(model), indices=cells, n_samples=n_samples, seed=seed)
    for warning in caught:
        warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=3)
    return result
