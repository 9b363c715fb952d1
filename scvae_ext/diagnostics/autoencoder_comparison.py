"""What a comparison of a VAE with an autoencoder found, and what it says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from jaxtyping import Float

from scvae_ext.models import SCVAE, Autoencoder

__all__ = ["MEASURES", "AutoencoderComparison", "Contestant", "Measured"]

Contestant = Literal["vae", "autoencoder"]


class _Question(NamedTuple):
    """What a measure is in words, and whether more of it is better."""

    words: str
    higher_is_better: bool = False


MEASURES: Mapping[str, _Question] = {
    "training_error": _Question("reconstruction of training cells"),
    "held_out_error": _Question("reconstruction of held-out cells"),
    "half_deviance": _Question("prediction of held-out molecules (deviance)"),
    "half_correlation": _Question("prediction of held-out molecules (correlation)", higher_is_better=True),
    "detour": _Question("straightness of the way between cells"),
    "largest_step": _Question("evenness of the way between cells"),
    "gap": _Question("closeness of the way to cells"),
    "generated_auc": _Question("generated cells"),
    "generated_auc_normal": _Question("cells generated from N(0, I)"),
}


@dataclass(frozen=True)
class Measured:
    """One measure of both models, with standard errors over cells or pairs of cells.

    Parameters
    ----------
    vae, vae_error, autoencoder, autoencoder_error
        Value and standard error of each model.
    difference, difference_error
        VAE minus autoencoder; the standard error is that of paired differences where the same cells are compared.
    reference, reference_error
        What the value is to be read against, NaN where there is no such thing, and its standard error, where it was
        estimated from samples of its own.
    """

    vae: float
    vae_error: float
    autoencoder: float
    autoencoder_error: float
    difference: float
    difference_error: float
    reference: float = math.nan
    reference_error: float = math.nan

    @classmethod
    def paired(
        cls, vae: Float[np.ndarray, "units"], autoencoder: Float[np.ndarray, "units"], reference: float = math.nan
    ) -> Self:
        """Compare the values of the same cells, or pairs of cells.

        Parameters
        ----------
        vae, autoencoder, reference
            Values of each, and what they are to be read against.
        """
        of_vae, of_autoencoder, of_difference = (
            (float(of_units.mean()), float(of_units.std(ddof=1) / math.sqrt(len(of_units))))
            for of_units in (vae, autoencoder, vae - autoencoder)
        )
        return cls(*of_vae, *of_autoencoder, *of_difference, reference)

    @classmethod
    def independent(
        cls, vae: tuple[float, float], autoencoder: tuple[float, float], reference: tuple[float, float]
    ) -> Self:
        """Compare values whose errors are taken for independent, which errs on the side of no difference.

        Parameters
        ----------
        vae, autoencoder, reference
            Value and standard error of each, and of what they are to be read against.
        """
        return cls(*vae, *autoencoder, vae[0] - autoencoder[0], math.hypot(vae[1], autoencoder[1]), *reference)


@dataclass(frozen=True, eq=False, repr=False)
class AutoencoderComparison:
    """A VAE and an autoencoder with the same networks, judged on the same held-out cells.

    Parameters
    ----------
    measures
        By name, in the order of :meth:`to_frame`.
    coverage
        Share of held-out counts inside predictive intervals, by the level of the interval: of the VAE, and of the
        autoencoder if the noise of a Poisson count is assumed around its predictions, as it states none.
    coverage_error
        Standard error over cells of the coverage of 90% intervals.
    made
        First two principal components of real held-out cells (``"real"``) and of generated ones (``"vae"``,
        ``"autoencoder"`` from a Gaussian fitted to its codes, ``"autoencoder_normal"`` from N(0, I)).
    vae, autoencoder
        The trained models.
    n_cells, n_pairs
        Numbers of held-out cells, and of pairs of them that lines were drawn between.
    """

    measures: dict[str, Measured]
    coverage: pd.DataFrame
    coverage_error: dict[str, float]
    made: dict[str, Float[np.ndarray, "cells 2"]]
    vae: SCVAE
    autoencoder: Autoencoder
    n_cells: int
    n_pairs: int

    def winner(self, name: str) -> Contestant | None:
        """Return which model is better in a measure by more than two standard errors, or ``None``.

        Parameters
        ----------
        name
            Name of the measure.
        """
        found = self.measures[name]
        if abs(found.difference) <= 2 * found.difference_error:
            return None
        return "vae" if (found.difference > 0) == MEASURES[name].higher_is_better else "autoencoder"

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each measure.

        ``vae`` and ``autoencoder`` with their standard errors (``_error``), ``difference`` of VAE minus autoencoder
        with its ``difference_error``, the ``reference`` to read both against and its error, whether
        ``higher_is_better``, and the ``winner``, empty where the difference is within two standard errors.
        """
        rows = {
            name: {
                **vars(found),
                "higher_is_better": MEASURES[name].higher_is_better,
                "winner": self.winner(name) or "",
            }
            for name, found in self.measures.items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "measure"
        return frame

    @property
    def verdict(self) -> str:
        """Which model is better at what, in one sentence."""
        won: dict[Contestant | None, list[str]] = {"vae": [], "autoencoder": [], None: []}
        for name in self.measures:
            won[self.winner(name)].append(MEASURES[name].words)
        words: dict[Contestant, str] = {"vae": "VAE", "autoencoder": "autoencoder"}
        parts = [f"the {words[model]} is better in {', '.join(won[model])}" for model in words if won[model]]
        if won[None]:
            parts.append(f"no difference beyond two standard errors in {', '.join(won[None])}")
        sentence = "; ".join(parts)
        return f"{sentence[0].upper()}{sentence[1:]}."

    def summary(self) -> str:
        """Return the result in plain words."""
        measures = self.measures
        lines = [self.verdict]
        lines.append(
            "Mean squared error of log-normalised values, which the autoencoder is trained on and the VAE is not: "
            f"{_both(measures['training_error'])} on training cells, {_both(measures['held_out_error'])} on held-out "
            "ones."
        )
        half = measures["half_deviance"]
        lines.append(
            f"One half of the molecules of held-out cells predicted from the other: deviance a cell {_both(half, 1)} "
            f"(mean cell {half.reference:.1f}), correlation {_both(measures['half_correlation'])}."
        )
        if "detour" in measures:
            lines.append(
                f"On the line between two cells expression takes a detour of {_both(measures['detour'], 2)} times the "
                f"straight way, with a largest step of {_both(measures['largest_step'], 2)} times the mean one; its "
                f"loneliest point is {_both(measures['gap'], 2)} of the way's extent from the nearest cell."
            )
        generated, normal = measures["generated_auc"], measures["generated_auc_normal"]
        lines.append(
            "A classifier tells generated cells from real ones with an area under the curve of "
            f"{generated.vae:.3f} ± {generated.vae_error:.3f} for the VAE (z from its prior), "
            f"{generated.autoencoder:.3f} ± {generated.autoencoder_error:.3f} for the autoencoder from a Gaussian "
            f"fitted to its codes, {normal.autoencoder:.3f} ± {normal.autoencoder_error:.3f} from N(0, I); real "
            f"cells from other real cells {generated.reference:.3f} ± {generated.reference_error:.3f}. 0.5 is chance, "
            "1 is always."
        )
        vae, autoencoder = (float(self.coverage[name].loc[0.9]) for name in ("vae", "autoencoder"))
        lines.append(
            f"90% predictive intervals of the VAE hold {vae:.1%} ± {self.coverage_error['vae']:.1%} of held-out counts."
            " The autoencoder states no uncertainty; if its predictions had the noise of a Poisson count, it would be "
            f"{autoencoder:.1%} ± {self.coverage_error['autoencoder']:.1%}."
        )
        lines.append(
            f"{self.n_cells} held-out cells, {self.n_pairs} pairs of them; one training of each model, whose chance "
            "is in no standard error."
        )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.summary()


def _both(found: Measured, digits: int = 3) -> str:
    vae = f"{found.vae:.{digits}f} ± {found.vae_error:.{digits}f}"
    return f"VAE {vae}, autoencoder {found.autoencoder:.{digits}f} ± {found.autoencoder_error:.{digits}f}"
