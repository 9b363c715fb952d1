"""Can this model be believed? Questions put to a trained model; each answer is a typed result with a plot in ``pl``."""

from scvae_ext.diagnostics.evidence import Evidence, evidence
from scvae_ext.diagnostics.posterior_collapse import PosteriorCollapse, posterior_collapse

__all__ = ["Evidence", "PosteriorCollapse", "evidence", "posterior_collapse"]
