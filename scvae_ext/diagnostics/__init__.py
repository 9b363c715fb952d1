"""Whether a trained model can be believed: each question has a function, a typed result and a plot in ``pl``."""

from scvae_ext.diagnostics.evidence import Evidence, evidence
from scvae_ext.diagnostics.posterior_collapse import PosteriorCollapse, posterior_collapse

__all__ = ["Evidence", "PosteriorCollapse", "evidence", "posterior_collapse"]
