"""Which models a question can be put to."""

from typing import TypeAlias

from scvae_ext.models import SCVAE, CiteVAE, MultiomeVAE, SemiSupervisedVAE

__all__ = ["AnyVAE", "GeneVAE", "wrong_model"]

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
