"""The autoencoder beside the VAE: what a probabilistic model gains, and what it costs."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from scvae_ext.diagnostics._judged_models import (
    Deterministic,
    Judged,
    Probabilistic,
    log_normalised_counts,
    minibatches_of,
)
from scvae_ext.diagnostics._latent_lines import LineMeasures, measure_lines
from scvae_ext.diagnostics._other_half import LEVELS, OtherHalf, predict_other_half
from scvae_ext.diagnostics._two_samples import CellFeatures, told_apart
from scvae_ext.likelihoods import COUNT_LIKELIHOODS
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.inference import evaluating
from scvae_ext.models.options import whole_number

__all__ = ["AutoencoderComparison", "Measured", "compare_autoencoder"]

Contestant = Literal["vae", "autoencoder"]

LEAST_CELLS = 50
OWN_OPTIONS = ("adata", "seed")
SHARED_OPTIONS = ("n_hidden", "n_latent", "n_layers", "dropout_rate")


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


def compare_autoencoder(
    adata: AnnData,
    *,
    model_options: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    train_size: float = 0.7,
    validation_size: float = 0.1,
    batch_size: int = 128,
    accelerator: str = "auto",
    enable_progress_bar: bool = True,
    n_cells: int = 1000,
    n_samples: int = 50,
    seed: int = 0,
) -> AutoencoderComparison:
    r"""Train a VAE and a deterministic autoencoder in the same way, and ask the same of both.

    Both have the same networks, see the same training cells for as many steps, choose their weights on the same
    validation cells, and are judged on the rest, by what a probabilistic model is said to be good for:

    * **Reconstruction** (``training_error``, ``held_out_error``). Mean squared error of log-normalised values
      :math:`y = \log(1 + 10^4 x / \ell)`, the autoencoder's own objective. The VAE's prediction is the expectation
      of y among counts that it draws for the cell, less what the variance of this mean over draws adds to the error.
    * **Held-out prediction** (``half_deviance``, ``half_correlation``). Each molecule of a held-out cell goes to one
      of two halves by the toss of a coin. Models encode the first half and predict shares :math:`p_g` of the second:
      Poisson deviance :math:`2 \sum_g x_g \log\{x_g / (\ell p_g)\}`, and the correlation over genes of predicted and
      observed :math:`\log(1 + 10^4 p)`, less the mean over cells. All predictions are mixed with 1% of the mean cell,
      lest a predicted zero where a molecule was seen decides all. The reference is the mean cell itself.
    * **Smoothness** (``detour``, ``largest_step``, ``gap``). Points are decoded at 20 equal steps along the straight
      line between the latent points of two held-out cells, each cell in one pair. With :math:`v_t` the log-normalised
      expected expression,
      :math:`\sum_t |v_{t+1} - v_t| / |v_{20} - v_0|` (1: straight),
      :math:`20 \max_t |v_{t+1} - v_t| / \sum_t |v_{t+1} - v_t|` (1: even, 20: a jump), and
      :math:`\max_t \min_n |v_t - v_n| / |v_{20} - v_0|` with the decoded training cells n (0: cells all along the
      way, 0.5: none between the two ends of a straight one).
    * **Generation** (``generated_auc``, ``generated_auc_normal``). The VAE decodes :math:`z \sim p(z)` and draws from
      its likelihood. The autoencoder has neither: its z come from a Gaussian fitted to its codes of training cells,
      or from N(0, I), and its counts have Poisson noise. Library sizes and covariates are those of held-out
      cells, from which a classifier has to tell the generated ones: the cross-validated area under the ROC curve, by
      20 principal components, the distance from them, and the number of genes detected. The reference is the same
      for training cells in place of generated ones.
    * **Uncertainty** (``coverage``). Central predictive intervals of the VAE for the second half of the counts of the
      50 most abundant genes, by the randomised probability integral transform. The autoencoder has none.

    A model is called better in a measure where the difference is beyond two standard errors. These cover the choice of
    cells, not the chance of training. Both models see half of the molecules in cells of half the size that they were
    trained on; halves of an overdispersed count are not quite independent given z, which favours neither. The
    measures of smoothness live in what each model itself decodes: a model that decodes every cell alike has no lines.

    Parameters
    ----------
    adata
        AnnData that :meth:`~scvae_ext.SCVAE.setup_anndata` was called on. It is not changed.
    model_options
        Options of :class:`~scvae_ext.SCVAE`, of which ``n_hidden``, ``n_latent``, ``n_layers`` and ``dropout_rate``
        go to both models.
    max_epochs, max_steps, batch_size, accelerator, enable_progress_bar
        As for :meth:`~scvae_ext.SCVAE.train`.
    train_size, validation_size
        Shares of the cells to train on and to choose the best weights by; the models are compared on the others, which
        must be 50 cells at least.
    n_cells
        Held-out cells to compare on at most, and as many training cells; at least 50.
    n_samples
        Draws of each cell.
    seed
        Seed of the split, of weights, of training and of all draws.

    Returns
    -------
    AutoencoderComparison
        Its ``verdict`` is a sentence.

    Raises
    ------
    ValueError
        If too few cells are left to compare on, there are fewer than three genes, the likelihood is not one of
        counts, or an option is not valid.
    TypeError
        If an option of the models is unknown.

    Warns
    -----
    UserWarning
        If a model decodes held-out cells alike, so that there are no lines between them; the result has no measures
        of smoothness then.

    Notes
    -----
    Sources: Kingma and Welling, ICLR 2014 (the VAE); Batson, Royer and Webber, bioRxiv 786269 (2019) (one half of the
    molecules from the other); Lopez-Paz and Oquab, ICLR 2017 (the classifier); Czado, Gneiting and Held, Biometrics
    65, 1254 (2009) (calibration of counts).

    See Also
    --------
    scvae_ext.pl.compare_autoencoder : Draw the result.
    """
    options = dict(model_options or {})
    for name in OWN_OPTIONS:
        if name in options:
            raise ValueError(f"model_options holds {name!r}, which is an argument of compare_autoencoder itself.")
    likelihood = options.get("gene_likelihood", "nb")
    if likelihood == "normal":
        raise ValueError(
            "model_options asks for gene_likelihood='normal', but the comparison needs counts: use one of "
            f"{', '.join(map(repr, COUNT_LIKELIHOODS))}."
        )
    n_cells = whole_number("n_cells", n_cells, least=LEAST_CELLS)
    n_samples = whole_number("n_samples", n_samples, least=2)
    seed = whole_number("seed", seed, least=0)
    # Both models are built before either is trained, so that a mistake costs no time.
    vae = SCVAE(adata, seed=seed, **options)
    autoencoder = Autoencoder(
        adata, seed=seed, **{name: value for name, value in options.items() if name in SHARED_OPTIONS}
    )
    if vae.registry.n_genes < 3:
        raise ValueError(f"adata has {vae.registry.n_genes} genes: at least 3 are needed to compare expression.")
    n_left = adata.n_obs - round(adata.n_obs * train_size) - round(adata.n_obs * validation_size)
    if min(n_left, round(adata.n_obs * train_size) // 2) < LEAST_CELLS:
        raise ValueError(
            f"train_size={train_size!r} and validation_size={validation_size!r} leave {max(n_left, 0)} of "
            f"{adata.n_obs} cells to compare on: at least {LEAST_CELLS} are needed, and twice as many to train on."
        )
    for model in (vae, autoencoder):
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
    return _judge(vae, autoencoder, _choose_cells(vae, n_cells, seed), n_samples, seed)


@dataclass(frozen=True)
class _ChosenCells:
    """Positions of the cells that are asked about.

    Parameters
    ----------
    held_out
        Cells that neither model was trained or validated on.
    like_them
        As many training cells, of library sizes as near as there are.
    others
        Training cells that are none of those.
    pairs
        Pairs of held-out cells, of the same batch, each cell in one of them.
    """

    held_out: Int[np.ndarray, "cells"]
    like_them: Int[np.ndarray, "cells"]
    others: Int[np.ndarray, "others"]
    pairs: Int[np.ndarray, "pairs 2"]


def _choose_cells(model: SCVAE, n_cells: int, seed: int) -> _ChosenCells:
    rng = np.random.default_rng(seed)
    assert model.test_indices is not None
    assert model.train_indices is not None
    n_cells = min(n_cells, len(model.test_indices), len(model.train_indices) // 2)
    held_out = np.sort(rng.permutation(model.test_indices)[:n_cells])
    # Enough to choose from, and no matrix of all training cells.
    candidates = rng.permutation(model.train_indices)[: 10 * n_cells]
    source = model._own_source()
    log_size = source.library_size.double().log().numpy()
    distance = np.abs(log_size[held_out][:, None] - log_size[candidates])
    like_them = candidates[linear_sum_assignment(distance)[1]]
    batch = source.batch.numpy()[held_out]
    pairs = [
        held_out[of_batch[: len(of_batch) // 2 * 2]].reshape(-1, 2)
        for label in np.unique(batch)
        if len(of_batch := rng.permutation(np.flatnonzero(batch == label))) > 1
    ]
    return _ChosenCells(held_out, like_them, np.setdiff1d(candidates, like_them), np.concatenate(pairs))


def _judge(
    vae: SCVAE, autoencoder: Autoencoder, cells: _ChosenCells, n_samples: int, seed: int
) -> AutoencoderComparison:
    """Ask trained models all questions."""
    both: dict[Contestant, tuple[Judged, SCVAE | Autoencoder]] = {
        "vae": (Probabilistic(vae.module), vae),
        "autoencoder": (Deterministic(autoencoder.module), autoencoder),
    }
    mean_cell = _mean_cell(vae, cells.others)
    errors: dict[str, dict[str, np.ndarray]] = {}
    halves: dict[str, OtherHalf] = {}
    lines: dict[str, LineMeasures] = {}
    # torch's distributions draw from the default generator alone.
    with torch.random.fork_rng():
        for name, (judged, model) in both.items():
            torch.manual_seed(seed)
            errors[name] = {
                which: _squared_errors(judged, model, positions, n_samples)
                for which, positions in (("training_error", cells.like_them), ("held_out_error", cells.held_out))
            }
            halves[name] = predict_other_half(judged, model, cells.held_out, mean_cell, n_samples, seed)
            lines[name] = measure_lines(judged, model, cells.pairs, cells.others)
        torch.manual_seed(seed)
        aucs, made = _generated(vae, autoencoder, cells, seed)
    of_vae, of_autoencoder = halves["vae"], halves["autoencoder"]
    measures = {
        **{name: Measured.paired(errors["vae"][name], errors["autoencoder"][name]) for name in errors["vae"]},
        "half_deviance": Measured.paired(
            of_vae.deviance, of_autoencoder.deviance, reference=float(of_vae.of_mean.mean())
        ),
        "half_correlation": Measured.paired(of_vae.correlation, of_autoencoder.correlation, reference=0.0),
        **_smoothness(lines),
        "generated_auc": Measured.independent(aucs["vae"], aucs["autoencoder"], aucs["real"]),
        "generated_auc_normal": Measured.independent(aucs["vae"], aucs["autoencoder_normal"], aucs["real"]),
    }
    at = int(np.argmin(np.abs(LEVELS - 0.9)))
    inside = {name: half.inside for name, half in halves.items()}
    return AutoencoderComparison(
        measures=measures,
        coverage=pd.DataFrame(
            {name: each.mean(0) for name, each in inside.items()}, index=pd.Index(LEVELS, name="level")
        ),
        coverage_error={name: float(each[:, at].std(ddof=1) / math.sqrt(len(each))) for name, each in inside.items()},
        made=made,
        vae=vae,
        autoencoder=autoencoder,
        n_cells=len(cells.held_out),
        n_pairs=len(cells.pairs),
    )


def _mean_cell(model: SCVAE, positions: Int[np.ndarray, "chosen"]) -> Float[np.ndarray, "genes"]:
    """Return the share of each gene in the counts of some cells, none of them zero."""
    total = np.full(model.registry.n_genes, 0.5)
    for _, minibatch in minibatches_of(model, positions):
        total += minibatch.counts.dense().sum(0, dtype=torch.float64).cpu().numpy()
    share: np.ndarray = total / total.sum()
    return share


def _squared_errors(
    judged: Judged, model: SCVAE | Autoencoder, positions: Int[np.ndarray, "cells"], n_samples: int
) -> Float[np.ndarray, "cells"]:
    with evaluating(model.module):
        parts = [
            judged.squared_error(minibatch, n_samples).double().cpu().numpy()
            for _, minibatch in minibatches_of(model, positions)
        ]
    return np.concatenate(parts)


def _smoothness(lines: Mapping[str, LineMeasures]) -> dict[str, Measured]:
    """Compare the ways between those pairs of cells that neither model decodes alike."""
    chords = np.array([of_model.chord for of_model in lines.values()])
    kept = (chords > 1e-3).all(0)
    if np.count_nonzero(kept) < 10:
        alike = " and ".join(name for name, chord in zip(lines, chords, strict=True) if np.median(chord) <= 1e-3)
        warnings.warn(
            f"Held-out cells are decoded alike ({alike or 'both models in part'}), so that there are no lines between "
            "them: smoothness was not measured. posterior_collapse says which latent dimensions are used.",
            UserWarning,
            stacklevel=4,
        )
        return {}
    vae, autoencoder = lines["vae"], lines["autoencoder"]
    return {
        "detour": Measured.paired(vae.detour[kept], autoencoder.detour[kept], reference=1.0),
        "largest_step": Measured.paired(vae.largest_step[kept], autoencoder.largest_step[kept], reference=1.0),
        "gap": Measured.paired(vae.gap[kept], autoencoder.gap[kept]),
    }


def _generated(
    vae: SCVAE, autoencoder: Autoencoder, cells: _ChosenCells, seed: int
) -> tuple[dict[str, tuple[float, float]], dict[str, Float[np.ndarray, "cells 2"]]]:
    """Return how well each kind of cell is told from real ones, and their first two principal components."""
    judged = Deterministic(autoencoder.module)
    with evaluating(vae.module), evaluating(autoencoder.module):
        codes = torch.cat([judged.centre(minibatch) for _, minibatch in minibatches_of(autoencoder, cells.others)])
        centre, covariance = codes.double().mean(0), torch.cov(codes.double().T).reshape(codes.shape[1], -1)
        # The root of a covariance of any rank.
        variances, axes = torch.linalg.eigh(covariance)
        root = axes * variances.clamp_min(0).sqrt()
        numbers = torch.randn(len(cells.held_out), codes.shape[1], device=codes.device, dtype=torch.float64)
        made = {
            "vae": _made(Probabilistic(vae.module), vae, cells, vae.module.sample_prior(len(cells.held_out))),
            "autoencoder": _made(judged, autoencoder, cells, (centre + numbers @ root.T).to(codes.dtype)),
            "autoencoder_normal": _made(judged, autoencoder, cells, numbers.to(codes.dtype)),
        }
    features = CellFeatures.fit(_observed(vae, cells.others), seed)
    of_real = features.of(_observed(vae, cells.held_out))
    of_others = {
        "real": features.of(_observed(vae, cells.like_them)),
        **{name: features.of(values) for name, values in made.items()},
    }
    aucs = {name: told_apart(of_real, each, seed) for name, each in of_others.items()}
    first_two = {name: each[:, :2] for name, each in of_others.items() if name != "real"}
    return aucs, {"real": of_real[:, :2], **first_two}


def _made(
    judged: Judged, model: SCVAE | Autoencoder, cells: _ChosenCells, states: torch.Tensor
) -> Float[np.ndarray, "cells genes"]:
    """Draw counts at latent points, and return them log-normalised."""
    parts = [
        log_normalised_counts(judged.counts(states[rows], minibatch)).cpu().numpy()
        for rows, minibatch in minibatches_of(model, cells.held_out)
    ]
    return np.concatenate(parts)


def _observed(model: SCVAE, positions: Int[np.ndarray, "cells"]) -> Float[np.ndarray, "cells genes"]:
    parts = [
        log_normalised_counts(minibatch.counts.dense()).cpu().numpy()
        for _, minibatch in minibatches_of(model, positions)
    ]
    return np.concatenate(parts)
