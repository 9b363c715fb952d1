"""What is asked of a VAE and of an autoencoder, and of which cells."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
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
from scvae_ext.diagnostics._paired_two_sample import CellFeatures, told_apart
from scvae_ext.diagnostics.autoencoder_comparison import AutoencoderComparison, Contestant, Measured
from scvae_ext.models import SCVAE, Autoencoder
from scvae_ext.models.cells import evaluating
from scvae_ext.random_state import seeded

__all__ = ["ChosenCells", "choose_cells", "judge"]


@dataclass(frozen=True)
class ChosenCells:
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


def choose_cells(model: SCVAE, n_cells: int, seed: int) -> ChosenCells:
    """Choose the cells to ask about.

    Parameters
    ----------
    model
        Trained with a split.
    n_cells
        Held-out cells at most.
    seed
        Seed of the choice.
    """
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
    return ChosenCells(held_out, like_them, np.setdiff1d(candidates, like_them), np.concatenate(pairs))


def judge(vae: SCVAE, autoencoder: Autoencoder, cells: ChosenCells, n_samples: int, seed: int) -> AutoencoderComparison:
    """Ask trained models all questions.

    Parameters
    ----------
    vae, autoencoder
        The models.
    cells
        The cells to ask about.
    n_samples
        Draws of each cell.
    seed
        Seed of all draws.
    """
    both: dict[Contestant, tuple[Judged, SCVAE | Autoencoder]] = {
        "vae": (Probabilistic(vae.module), vae),
        "autoencoder": (Deterministic(autoencoder.module), autoencoder),
    }
    mean_cell = _mean_cell(vae, cells.others)
    errors: dict[str, dict[str, np.ndarray]] = {}
    halves: dict[str, OtherHalf] = {}
    lines: dict[str, LineMeasures] = {}
    # torch's distributions draw from the default generator alone.
    for name, (judged, model) in both.items():
        with seeded(seed):
            errors[name] = {
                which: _squared_errors(judged, model, positions, n_samples)
                for which, positions in (("training_error", cells.like_them), ("held_out_error", cells.held_out))
            }
            halves[name] = predict_other_half(judged, model, cells.held_out, mean_cell, n_samples, seed)
            lines[name] = measure_lines(judged, model, cells.pairs, cells.others)
    with seeded(seed):
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
    vae: SCVAE, autoencoder: Autoencoder, cells: ChosenCells, seed: int
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
    judged: Judged, model: SCVAE | Autoencoder, cells: ChosenCells, states: torch.Tensor
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
