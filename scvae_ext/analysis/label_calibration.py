"""How far stated probabilities of labels can be trusted, learned from labels that were held out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

__all__ = ["LabelCalibration", "fit_label_calibration"]

# Standard deviations of the priors: of the log of the temperature about zero, of the logit of the share about its mean.
LOG_TEMPERATURE_SD = 1.0
MEAN_LOGIT_NOISE, LOGIT_NOISE_SD = -4.0, 2.0
TINY = 1e-30


@dataclass(frozen=True)
class LabelCalibration:
    r"""Probabilities that are less sure than a model's own.

    .. math:: p'(y) = (1 - \varepsilon) \frac{p(y)^{1/T}}{\sum_{y'} p(y')^{1/T}} + \frac{\varepsilon}{K}

    Parameters
    ----------
    temperature
        T, at least one: by how much a model overrates the evidence.
    noise
        :math:`\varepsilon`, share of labels that follow no rule.
    """

    temperature: float = 1.0
    noise: float = 0.0

    def apply(self, probabilities: Float[np.ndarray, "cells labels"]) -> Float[np.ndarray, "cells labels"]:
        """Return the probabilities that are less sure.

        Parameters
        ----------
        probabilities
            Those of the model; each row sums to one.
        """
        log_probs = np.log(np.maximum(probabilities.astype(np.float64), TINY)) / self.temperature
        flat = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
        flat /= flat.sum(axis=1, keepdims=True)
        result: np.ndarray = (1 - self.noise) * flat + self.noise / probabilities.shape[1]
        return result.astype(probabilities.dtype)


def fit_label_calibration(
    probabilities: Float[np.ndarray, "cells labels"], label: Int[np.ndarray, "cells"]
) -> LabelCalibration:
    """Find the temperature and the noise by which labels that were held out are most probable.

    Both have a weak prior, so that few labels change little.

    Parameters
    ----------
    probabilities
        What was said of cells without their label.
    label
        The label of each.
    """
    cells = np.arange(len(label))

    def loss(parameters: np.ndarray) -> float:
        log_temperature, logit = parameters
        calibration = LabelCalibration(float(np.exp(log_temperature)), float(1 / (1 + np.exp(-logit))))
        of_labels = np.log(calibration.apply(probabilities.astype(np.float64))[cells, label])
        penalty = (log_temperature / LOG_TEMPERATURE_SD) ** 2 + ((logit - MEAN_LOGIT_NOISE) / LOGIT_NOISE_SD) ** 2
        return float(0.5 * penalty - of_labels.sum())

    found = minimize(loss, [0.5, MEAN_LOGIT_NOISE], method="L-BFGS-B", bounds=[(0.0, 5.0), (-15.0, 0.0)])
    return LabelCalibration(float(np.exp(found.x[0])), float(1 / (1 + np.exp(-found.x[1]))))
