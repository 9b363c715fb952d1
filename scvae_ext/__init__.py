"""Variational autoencoders for single-cell counts, in the AnnData that scanpy works on.

Models and plots load on first use, so that ``import scvae_ext`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scvae_ext import analysis, datasets, diagnostics, distributions, pl
    from scvae_ext.models import SCVAE, Autoencoder, CiteVAE, MultiomeVAE, SemiSupervisedVAE

__version__ = "0.1.0"
__all__ = [
    "SCVAE",
    "Autoencoder",
    "CiteVAE",
    "MultiomeVAE",
    "SemiSupervisedVAE",
    "__version__",
    "analysis",
    "datasets",
    "diagnostics",
    "distributions",
    "pl",
]

_MODELS = frozenset({"SCVAE", "Autoencoder", "CiteVAE", "MultiomeVAE", "SemiSupervisedVAE"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODELS:
        return getattr(import_module(f"{__name__}.models"), name)
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    # Not what this file itself needs.
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
