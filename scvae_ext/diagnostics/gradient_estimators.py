"""How noisy the gradient of training is, and whether it is right, for each estimator that there is."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool

from scvae_ext.diagnostics._gradient_moments import moments_of_gradient, moments_of_group
from scvae_ext.diagnostics._models import wrong_model
from scvae_ext.minibatch import Minibatch
from scvae_ext.models import SCVAE
from scvae_ext.models.base import BaseModel
from scvae_ext.models.options import whole_number
from scvae_ext.models.query import CellSelection
from scvae_ext.modules import SURROGATES, VAE, Bound, GradientEstimator

__all__ = ["GradientEstimate", "GradientEstimators", "gradient_estimators"]

# By the first prefix that fits a parameter's name; other parts of a module are groups of their own.
GROUPS = {
    "encoder.mean.": "encoder mean",
    "encoder.log_variance": "encoder scale",
    "encoder.": "encoder body",
    "library_encoder.": "library encoder",
    "decoder.": "decoder",
    "covariates.": "decoder",
    "likelihood.": "likelihood",
    "prior.": "prior",
}
# The plain gradient of each objective, by automatic differentiation alone, which the long average is taken of.
PLAIN: dict[Bound, GradientEstimator] = {"elbo": "pathwise", "iwae": "importance_weighted"}
N_CELLS = 128
# Times the distance that noise alone leaves on average: at worst, if all noise lies along one line, this many standard
# errors, and far more than chance gives where it has many directions.
BIAS_LIMIT = 3.0


@dataclass(frozen=True)
class GradientEstimate:
    r"""Moments of one estimator's gradient with respect to one group of parameters.

    Parameters
    ----------
    estimator, objective, group
        What estimates which objective's gradient with respect to what.
    n_parameters
        Number of parameters in the group.
    gradient_norm
        Euclidean norm of the long average, in nats per cell and unit of the parameters.
    bias
        Norm of the difference between the estimator's mean and the long average.
    bias_error
        Root mean square of that norm where there is no bias, from the variances of both averages.
    variance
        Variance of a single estimate, summed over the parameters.
    """

    estimator: GradientEstimator
    objective: Bound
    group: str
    n_parameters: int
    gradient_norm: float
    bias: float
    bias_error: float
    variance: float

    @property
    def noise_to_signal(self) -> float:
        """Root of the variance over the norm of the gradient; zero where there is neither."""
        if self.gradient_norm == 0:
            return math.inf if self.variance else 0.0
        return math.sqrt(self.variance) / self.gradient_norm

    @property
    def is_biased(self) -> bool:
        """Whether the bias is more than three times what noise alone leaves on average."""
        return self.bias > BIAS_LIMIT * self.bias_error


@dataclass(frozen=True, eq=False, repr=False)
class GradientEstimators:
    """Variance and bias of estimators of the gradient, on one minibatch and with the weights as they are.

    Parameters
    ----------
    estimates
        One for each estimator and group of parameters.
    seconds
        Time of one estimate by each estimator.
    n_samples
        Samples of each cell in one estimate.
    n_estimates, n_reference
        Estimates of each estimator, and of the long average.
    n_cells
        Cells of the minibatch.
    """

    bias_limit: ClassVar[float] = BIAS_LIMIT
    """Times the distance that noise alone leaves, beyond which an estimator counts as biased."""

    estimates: tuple[GradientEstimate, ...]
    seconds: dict[str, float]
    n_samples: int
    n_estimates: int
    n_reference: int
    n_cells: int

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each estimator and group of parameters; ``seconds`` are those of a whole estimate."""
        rows = [
            {
                "estimator": estimate.estimator,
                "group": estimate.group,
                "objective": estimate.objective,
                "n_parameters": estimate.n_parameters,
                "gradient_norm": estimate.gradient_norm,
                "variance": estimate.variance,
                "noise_to_signal": estimate.noise_to_signal,
                "bias": estimate.bias,
                "bias_error": estimate.bias_error,
                "is_biased": estimate.is_biased,
                "seconds": self.seconds[estimate.estimator],
            }
            for estimate in self.estimates
        ]
        return pd.DataFrame(rows).set_index(["estimator", "group"])

    def summary(self) -> str:
        """Return the result in plain words."""
        noise = self._noise_of_encoder()
        plain = noise["pathwise"]
        parts = [
            f"Root of the variance over the norm of the gradient, for the encoder's mean, on {self.n_cells} cells with "
            f"{self.n_samples} samples each: pathwise {plain:.3g}"
        ]
        for estimator, value in noise.items():
            if estimator != "pathwise":
                parts.append(f"{estimator.replace('_', ' ')} {value:.3g}")
        biased = sorted({estimate.estimator for estimate in self.estimates if estimate.is_biased})
        worst = max(estimate.bias / estimate.bias_error if estimate.bias_error else 0.0 for estimate in self.estimates)
        verdict = (
            f"Biased beyond noise: {', '.join(name.replace('_', ' ') for name in biased)}."
            if biased
            else "No estimator is biased beyond noise."
        )
        return "\n".join(
            [
                ", ".join(parts) + ".",
                f"{verdict} The largest distance of a mean over {self.n_estimates} estimates from the long average "
                f"({self.n_reference} estimates) is {worst:.2f} times what noise alone leaves; the limit is "
                f"{BIAS_LIMIT:g}.",
            ]
        )

    def _noise_of_encoder(self) -> dict[str, float]:
        return {
            estimate.estimator: estimate.noise_to_signal
            for estimate in self.estimates
            if estimate.group == "encoder mean"
        }

    def __repr__(self) -> str:
        return self.summary()


def gradient_estimators(
    model: BaseModel,
    adata: AnnData | None = None,
    indices: CellSelection | None = None,
    *,
    n_samples: int = 5,
    n_estimates: int = 100,
    n_reference: int = 500,
    seed: int = 0,
) -> GradientEstimators:
    r"""Compare estimators of the gradient by variance and bias, with respect to each group of parameters.

    With :math:`z_k = \mu_\phi(x) + \sigma_\phi(x)\,\varepsilon_k`,
    :math:`w_k = p_\theta(x \mid z_k)\,p(z_k) / q_\phi(z_k \mid x)` and shares :math:`\tilde w_k = w_k / \sum_j w_j`,
    the gradient with respect to the encoder's parameters :math:`\phi` is estimated by

    .. math::
        \text{pathwise:} & \quad \nabla_\phi \tfrac1K \textstyle\sum_k \log p(x \mid z_k) -
        \nabla_\phi \operatorname{KL}(q(z \mid x) \,\|\, p(z)) \\
        \text{sticking the landing:} & \quad
        \tfrac1K \textstyle\sum_k \partial_{z_k} \log w_k \, \nabla_\phi z_k \\
        \text{score function:} & \quad
        \tfrac1K \textstyle\sum_k \log w_k \, \nabla_\phi \log q_\phi(z_k \mid x) \\
        \text{with baseline:} & \quad
        \tfrac1K \textstyle\sum_k (\log w_k - \tfrac1{K-1} \sum_{j \ne k} \log w_j)\,
        \nabla_\phi \log q_\phi(z_k \mid x) \\
        \text{IWAE:} & \quad \nabla_\phi \log \tfrac1K \textstyle\sum_k w_k \\
        \text{IWAE, doubly reparameterised:} & \quad
        \textstyle\sum_k \tilde w_k^2 \, \partial_{z_k} \log w_k \, \nabla_\phi z_k

    The first four have the ELBO's gradient as their mean, the last two that of the importance-weighted bound with K
    samples; decoder, likelihood and prior get the plain gradient of either. Training uses pathwise
    (``objective="elbo"``) and doubly reparameterised (``"iwae"``) gradients.

    The bias is the distance between the mean of ``n_estimates`` estimates and a long average of the objective's plain
    gradient, drawn apart from them. It is never zero; ``bias_error`` is the root mean square that noise alone gives it,
    and an estimator counts as biased beyond three times that.

    The module is in evaluation mode: without dropout and with the running statistics of batch normalisation, all noise
    is that of the samples. The noise of the choice of a minibatch is no part of this, either.

    Sources: Kingma and Welling, ICLR 2014 (pathwise); Williams, Machine Learning 8, 229 (1992), and Mnih and Rezende,
    ICML 2016 (score function, leave-one-out baseline); Roeder, Wu and Duvenaud, NeurIPS 2017 (sticking the landing);
    Burda, Grosse and Salakhutdinov, ICLR 2016 (importance weighting); Tucker, Lawson, Gu and Maddison, ICLR 2019
    (doubly reparameterised).

    Parameters
    ----------
    model
        Trained :class:`~scvae_ext.SCVAE`.
    adata
        AnnData with the cells, matched by gene name; the model's own where ``None``.
    indices
        Cells of the minibatch: positions, a boolean mask or names. Where ``None``, 128 drawn at random, or all if there
        are fewer, from the training cells of the model or from an ``adata`` that is given.
    n_samples
        K, the samples of each cell in one estimate; at least two.
    n_estimates
        Estimates by each estimator; at least ten.
    n_reference
        Estimates in the long average of each objective; at least ten. The cost is that of
        ``6 * n_estimates + 2 * n_reference`` steps of training.
    seed
        Seed of the cells and of the samples.

    Returns
    -------
    GradientEstimators
        Per group of parameters: heads of the encoder's mean and of its log variance, its body, decoder, likelihood, and
        where there are such, the encoder of the library size and the prior.

    Raises
    ------
    TypeError
        If the model has no posterior.
    RuntimeError
        If it has not been trained.
    ValueError
        If there are no cells, or an option is not valid.

    See Also
    --------
    scvae_ext.pl.gradient_estimators : Draw the result.
    """
    if not isinstance(model, SCVAE):
        raise wrong_model(model, "gradient_estimators", "a posterior")
    n_samples = whole_number("n_samples", n_samples, least=2)
    n_estimates = whole_number("n_estimates", n_estimates, least=10)
    n_reference = whole_number("n_reference", n_reference, least=10)
    seed = whole_number("seed", seed, least=0)
    minibatch = _minibatch(model, adata, indices, seed)
    groups = _groups(model.module)
    seeds = iter(np.random.SeedSequence(seed).generate_state(len(PLAIN) + len(SURROGATES)).tolist())
    training = model.module.training
    model.module.eval()
    try:
        references = {
            objective: moments_of_gradient(model.module, minibatch, estimator, n_samples, n_reference, next(seeds))
            for objective, estimator in PLAIN.items()
        }
        estimates: list[GradientEstimate] = []
        seconds: dict[str, float] = {}
        for estimator, (objective, _) in SURROGATES.items():
            found = moments_of_gradient(model.module, minibatch, estimator, n_samples, n_estimates, next(seeds))
            seconds[estimator] = found.seconds
            for group, positions in groups.items():
                moments = moments_of_group(found, references[objective], positions)
                estimates.append(GradientEstimate(estimator, objective, group, int(positions.sum()), *moments))
    finally:
        model.module.train(training)
    return GradientEstimators(tuple(estimates), seconds, n_samples, n_estimates, n_reference, minibatch.n_cells)


def _minibatch(model: SCVAE, adata: AnnData | None, indices: CellSelection | None, seed: int) -> Minibatch:
    """Return the cells that were asked for, or some at random."""
    if indices is None:
        known = model.train_indices if adata is None else None
        n_cells = len(model.adata if adata is None else adata)
        candidates = np.arange(n_cells) if known is None else known
        rng = np.random.default_rng(seed)
        indices = np.sort(rng.choice(candidates, min(N_CELLS, len(candidates)), replace=False))
    _, cells = model._cells(adata, indices, None, fill_missing_genes=False)
    return cells.source.minibatch(cells.positions).to(cells.device)


def _groups(module: VAE) -> dict[str, Bool[np.ndarray, "parameters"]]:
    """Return which entries of the flattened parameters belong to each group."""
    names = np.concatenate([np.full(value.numel(), _group(name)) for name, value in module.named_parameters()])
    return {group: names == group for group in dict.fromkeys(names.tolist())}


def _group(name: str) -> str:
    return next((group for prefix, group in GROUPS.items() if name.startswith(prefix)), name.split(".")[0])
