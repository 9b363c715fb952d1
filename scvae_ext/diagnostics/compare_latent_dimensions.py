"""How much dependence between genes is left as the latent space grows, and what it gains."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from scvae_ext.diagnostics._models import others_than
from scvae_ext.diagnostics.conditional_independence import (
    LEAST_CELLS,
    ConditionalIndependence,
    conditional_independence,
)
from scvae_ext.diagnostics.evidence import Evidence, evidence
from scvae_ext.models import SCVAE
from scvae_ext.models.options import whole_number

__all__ = ["LatentDimensionComparison", "Setting", "compare_latent_dimensions"]

OWN_OPTIONS = ("adata", "n_latent", "residual_rank", "seed")


class Setting(NamedTuple):
    """Size of a latent space: the number of latent dimensions, and that of residual factors."""

    n_latent: int
    residual_rank: int


@dataclass(frozen=True, eq=False, repr=False)
class LatentDimensionComparison:
    """Residual dependence and held-out evidence of models that differ in the size of their latent space alone.

    Parameters
    ----------
    dependence
        Of the residuals of the same held-out cells, by setting.
    evidence
        Of these cells, in nats, by setting.
    models
        The trained models.
    """

    dependence: dict[Setting, ConditionalIndependence]
    evidence: dict[Setting, Evidence]
    models: dict[Setting, SCVAE]

    @property
    def best(self) -> Setting:
        """Setting of the highest mean evidence."""
        return max(self.evidence, key=lambda setting: self.evidence[setting].mean)

    def difference(self, first: Setting, second: Setting) -> tuple[float, float]:
        """Return by how much the evidence of one setting is higher than that of another, and its standard error.

        The mean of the differences of each cell, in nats per cell, and the standard deviation of these differences
        over the square root of the number of cells. How another training would have come out is not in it.

        Parameters
        ----------
        first, second
            The settings.
        """
        per_cell = self.evidence[first].log_evidence - self.evidence[second].log_evidence
        return float(per_cell.mean()), float(per_cell.std(ddof=1) / math.sqrt(len(per_cell)))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each setting, in the order in which they were given.

        ``rms_correlation`` and ``excess`` (with its standard deviation under independence), ``n_pairs`` and
        ``n_modules`` are those of :class:`ConditionalIndependence`. ``n_active_factors`` counts the residual factors
        that :meth:`~scvae_ext.SCVAE.train` kept. ``difference`` is to the best setting, in nats per held-out cell, with
        its paired ``standard_error``.
        """
        rows = {}
        for setting, found in self.dependence.items():
            difference, error = self.difference(setting, self.best)
            rows[setting] = {
                "rms_correlation": found.rms_correlation,
                "excess": found.excess,
                "excess_error": found.excess_error,
                "n_pairs": len(found.pairs),
                "n_modules": found.n_modules,
                "n_active_factors": self.models[setting].module.residual_rank,
                "log_evidence": self.evidence[setting].mean,
                "difference": difference,
                "standard_error": error,
                "n_untrusted": int(np.count_nonzero(~self.evidence[setting].is_trusted)),
            }
        return pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows, names=Setting._fields))

    @property
    def verdict(self) -> str:
        """How the dependence changes with the size of the latent space, and which size predicts best."""
        parts = [f"{found.rms_correlation:.3f} with {_words(setting)}" for setting, found in self.dependence.items()]
        best = self.best
        return (
            f"Residual correlations between genes (root mean square beyond chance): {', '.join(parts)}. Held-out "
            f"evidence is highest with {_words(best)}: {self.evidence[best].mean:.2f} nats per cell."
        )

    def summary(self) -> str:
        """Return the result in plain words."""
        lines = [self.verdict]
        for setting in self.evidence:
            if setting != self.best:
                loss, error = self.difference(self.best, setting)
                lines.append(f"{_words(setting)}: {loss:.2f} ± {error:.2f} nats per cell below that.")
        found = next(iter(self.dependence.values()))
        lines.append(f"{found.n_cells} held-out cells, correlations of {len(found.var_names)} genes.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def _words(setting: Setting) -> str:
    dimensions = f"{setting.n_latent} latent dimension{'s' * (setting.n_latent != 1)}"
    if not setting.residual_rank:
        return dimensions
    return f"{dimensions} and {setting.residual_rank} residual factor{'s' * (setting.residual_rank != 1)}"


def compare_latent_dimensions(
    adata: AnnData,
    n_latent: Sequence[int] = (2, 5, 10, 20),
    residual_rank: Sequence[int] = (0,),
    *,
    model_options: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    train_size: float = 0.7,
    validation_size: float = 0.1,
    batch_size: int = 128,
    accelerator: str = "auto",
    enable_progress_bar: bool = True,
    n_genes: int = 1000,
    significance: float = 0.05,
    n_samples: int = 200,
    n_optimisation_steps: int = 150,
    seed: int = 0,
) -> LatentDimensionComparison:
    """Train a model for each size of the latent space, and measure what dependence between genes is left.

    All models see the same training cells, choose their weights on the same validation cells, and are put to
    :func:`conditional_independence` and :func:`evidence` on the rest. Dependence that comes from a latent space without
    room for it shrinks as the space grows. What stays at any size has another cause: a decoder that was estimated from
    few cells, a likelihood of the wrong form, or the library size.

    Parameters
    ----------
    adata
        AnnData that :meth:`~scvae_ext.SCVAE.setup_anndata` was called on. It is not changed.
    n_latent
        Numbers of latent dimensions.
    residual_rank
        Numbers of residual factors; each is combined with each number of latent dimensions.
    model_options
        Further options of :class:`~scvae_ext.SCVAE` for all models.
    max_epochs, max_steps, batch_size, accelerator, enable_progress_bar
        As for :meth:`~scvae_ext.SCVAE.train`.
    train_size, validation_size
        Shares of the cells to train on and to choose the best weights by; the others are for the comparison, and
        must be 50 cells at least.
    n_genes, significance
        As for :func:`conditional_independence`.
    n_samples, n_optimisation_steps
        As for :func:`conditional_independence` and :func:`evidence`.
    seed
        Seed of the split, of weights, of training and of all samples.

    Returns
    -------
    LatentDimensionComparison
        In nats per cell.

    Raises
    ------
    ValueError
        If no setting or the same one twice is given, or too few cells are left to compare on.
    TypeError
        If an option of the models is unknown.

    Warns
    -----
    UserWarning
        As :func:`conditional_independence` and :func:`evidence` do, with the setting.

    See Also
    --------
    scvae_ext.pl.compare_latent_dimensions : Draw the result.
    """
    settings = _settings(n_latent, residual_rank)
    options = others_than(OWN_OPTIONS, model_options, "compare_latent_dimensions")
    n_left = adata.n_obs - round(adata.n_obs * train_size) - round(adata.n_obs * validation_size)
    if n_left < LEAST_CELLS:
        raise ValueError(
            f"train_size={train_size!r} and validation_size={validation_size!r} leave {max(n_left, 0)} of "
            f"{adata.n_obs} cells to compare on: at least {LEAST_CELLS} are needed."
        )
    # All models are built before any is trained, so that a mistake costs no time.
    models = {setting: SCVAE(adata, **setting._asdict(), seed=seed, **options) for setting in settings}
    dependence: dict[Setting, ConditionalIndependence] = {}
    scores: dict[Setting, Evidence] = {}
    for setting, model in models.items():
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
        held_out = model.test_indices
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            dependence[setting] = conditional_independence(
                model,
                indices=held_out,
                n_genes=n_genes,
                significance=significance,
                n_samples=n_samples,
                n_optimisation_steps=n_optimisation_steps,
                seed=seed,
            )
            scores[setting] = evidence(
                model,
                indices=held_out,
                n_samples=n_samples,
                n_optimisation_steps=n_optimisation_steps,
                seed=seed,
            )
        for warning in caught:
            warnings.warn(f"{_words(setting)}: {warning.message}", warning.category, stacklevel=2)
    return LatentDimensionComparison(dependence, scores, models)


def _settings(n_latent: Sequence[int], residual_rank: Sequence[int]) -> list[Setting]:
    """Return all combinations, each of valid numbers and none of them twice."""
    numbers = []
    for name, values, least in (("n_latent", n_latent, 1), ("residual_rank", residual_rank, 0)):
        if isinstance(values, int | str) or len(values) == 0:
            raise ValueError(f"{name}={values!r} must be a list of at least one whole number, for example [2, 10].")
        checked = [whole_number(name, value, least=least) for value in values]
        if len(set(checked)) < len(checked):
            raise ValueError(f"{name}={list(values)!r} holds a number more than once: pass each once.")
        numbers.append(checked)
    return [Setting(dimensions, rank) for dimensions in numbers[0] for rank in numbers[1]]
