import numpy as np
import torch
from scipy.special import ndtri

from scvae_ext.diagnostics import _residual_correlation
from scvae_ext.models.cells import Cells


def test_correlations_are_those_of_the_chosen_genes_about_their_means(trained, monkeypatch):
    """Residuals of a model that is wrong do not centre on zero."""
    model, seen = trained(), []

    def residuals_of(module, px, minibatch, uniform):
        values = ndtri(uniform) @ np.tri(12) + np.linspace(-3, 3, 12)
        seen.append(values)
        return values

    monkeypatch.setattr(_residual_correlation, "quantile_residuals", residuals_of)
    cells = Cells(model._own_source(), np.arange(60), torch.device("cpu"), 25)
    chosen = np.array([1, 4, 5, 10])
    correlation, effective = _residual_correlation.residual_correlation(model, cells, chosen, 10, 2, 0)
    assert len(seen) == 3
    np.testing.assert_allclose(correlation, np.corrcoef(np.concatenate(seen)[:, chosen], rowvar=False))
    assert effective.shape == (60,)
