"""A VAE without some residual factors is the VAE with them, where those factors are zero."""

import pytest
import torch
from minibatches import make_minibatch

from scvae_ext.modules import VAE, copy_weights

SIZES = {"n_hidden": 16, "n_latent": 3}
KINDS = {
    "nb": {},
    "zinb": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "normal": {"gene_likelihood": "normal"},
    "mixture": {"prior": "mixture", "n_prior_components": 4},
    "vamp": {"prior": "vamp", "n_prior_components": 4},
    "latent library": {"use_observed_lib_size": False},
    "linear": {"decoder": "linear"},
    "two layers": {"n_layers": 2, "encode_covariates": True},
}


@torch.no_grad()
@pytest.mark.parametrize("kept", [[], [1], [0, 2], [2, 0]])
@pytest.mark.parametrize("kind", KINDS)
def test_factors_are_taken_out_and_nothing_else_changes(kind, kept):
    minibatch = make_minibatch()
    full = VAE(7, **SIZES, **KINDS[kind], residual_rank=3).eval()
    without = VAE(7, **SIZES, **KINDS[kind], residual_rank=len(kept)).eval()
    copy_weights(full, without, kept)
    posterior, reduced = full.encode(minibatch), without.encode(minibatch)
    state = [0, 1, 2, *(3 + factor for factor in kept)]
    torch.testing.assert_close(reduced.qz.loc, posterior.qz.loc[:, state])
    torch.testing.assert_close(reduced.qz.scale, posterior.qz.scale[:, state])
    if posterior.log_library is not None:
        torch.testing.assert_close(reduced.log_library.loc, posterior.log_library.loc)
    torch.testing.assert_close(without.residual_loadings, full.residual_loadings[:, kept])
    sample = torch.randn(12, len(state))
    padded = torch.zeros(12, 6)
    padded[:, state] = sample
    log_library = None if without.library_encoder is None else minibatch.library_size.log()
    one, two = without.decode(sample, minibatch, log_library), full.decode(padded, minibatch, log_library)
    torch.testing.assert_close(
        without.likelihood.reconstruction(one, minibatch), full.likelihood.reconstruction(two, minibatch)
    )


@torch.no_grad()
def test_factors_are_added_and_nothing_else_changes():
    minibatch = make_minibatch()
    base = VAE(7, **SIZES).eval()
    grown = VAE(7, **SIZES, residual_rank=2).eval()
    of_factors = grown.encoder.mean.weight[3:].clone()
    copy_weights(base, grown)
    torch.testing.assert_close(grown.encoder.mean.weight[3:], of_factors)
    torch.testing.assert_close(grown.encode(minibatch).qz.loc[:, :3], base.encode(minibatch).qz.loc)
    sample = torch.randn(12, 3)
    padded = torch.cat([sample, torch.zeros(12, 2)], 1)
    one, two = base.decode(sample, minibatch), grown.decode(padded, minibatch)
    torch.testing.assert_close(
        base.likelihood.reconstruction(one, minibatch), grown.likelihood.reconstruction(two, minibatch)
    )
