"""Tensor types by axis, checked in the test suite and free of cost for users.

The axis names are ``cells genes proteins latent hidden samples covariates`` and ``nonzero``
(the entries of a minibatch that are not zero).
"""

from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "CellIndices",
    "CellValues",
    "CellsByGenes",
    "CellsByHidden",
    "CellsByLatent",
    "CellsByProteins",
    "GeneValues",
]

CellValues = Float[Tensor, "cells"]
"""One value per cell."""
CellIndices = Int[Tensor, "cells"]
"""One category per cell, as its position in the registry's list."""
GeneValues = Float[Tensor, "genes"]
"""One value per gene."""
CellsByGenes = Float[Tensor, "cells genes"]
"""One value per cell and gene."""
CellsByHidden = Float[Tensor, "cells hidden"]
"""Activations of a hidden layer."""
CellsByProteins = Float[Tensor, "cells proteins"]
"""One value per cell and protein."""
CellsByLatent = Float[Tensor, "cells latent"]
"""Coordinates in the latent space."""
