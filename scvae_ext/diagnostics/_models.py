"""Which models a question can be put to, and about which cells; and options of models that it trains."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from anndata import AnnData

from scvae_ext.models import SCVAE, CiteVAE, MultiomeVAE, SemiSupervisedVAE
from scvae_ext.models.query import CellSelection

__all__ = ["AnyVAE", "GeneVAE", "held_out_cells", "others_than", "wrong_model"]

GeneVAE: TypeAlias = SCVAE | SemiSupervisedVAE
"""Models of counts of genes."""
AnyVAE: TypeAlias = GeneVAE | CiteVAE | MultiomeVAE
"""Models with a posterior and a likelihood, whatever is counted."""


def wrong_model(model: object, question: str, needs: str) -> TypeError:
    """Return the error for a model that a question cannot be put to.

    Parameters
    ----------
    model
        What the user passed.
    question
        Name of the function.
    needs
        What it needs: ``"a likelihood"`` or ``"a posterior"``.
    """
    name = type(model).__name__
    if isinstance(model, CiteVAE | MultiomeVAE):
        other = "proteins" if isinstance(model, CiteVAE) else "chromatin"
        return TypeError(
            f"{question} asks about counts of genes alone, and {name} is a model of {other} as well: train an SCVAE "
            "on the genes, and pass that."
        )
    if isinstance(model, SemiSupervisedVAE):
        return TypeError(
            f"{question} asks about a model that was trained on counts alone, and {name} was on labels as well: train "
            "an SCVAE, and pass that."
        )
    return TypeError(f"{question} needs a model with {needs}, which {name} has not: use SCVAE.")


def held_out_cells(model: AnyVAE, adata: AnnData | None, indices: CellSelection | None) -> CellSelection | None:
    """Return the cells that a question is about: those asked for, or the held-out ones where none were.

    Parameters
    ----------
    model
        The model; one that is not trained says so itself.
    adata, indices
        What the user passed.

    Raises
    ------
    ValueError
        If nothing was asked for, and the model holds out no cells.
    """
    if not model.is_trained or adata is not None or indices is not None:
        return indices
    held_out = model.validation_indices
    if held_out is None or len(held_out) == 0:
        raise ValueError(
            "The model holds out no cells of its AnnData: pass indices=..., adata=..., or train with train_size "
            "below 1."
        )
    return held_out


def others_than(own: Iterable[str], model_options: Mapping[str, Any] | None, question: str) -> dict[str, Any]:
    """Return the options of models that a comparison trains, if none is what it chooses itself.

    Parameters
    ----------
    own
        Options that the comparison chooses, or takes as arguments of its own.
    model_options
        What the user passed.
    question
        Name of the function.

    Raises
    ------
    ValueError
        If one of them is passed.
    """
    options = dict(model_options or {})
    for name in own:
        if name in options:
            raise ValueError(f"model_options holds {name!r}, which is an argument of {question} itself.")
    return options
