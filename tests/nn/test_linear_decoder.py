import torch
from torch import nn

from scvae_ext.nn import LinearDecoder, Loadings


def test_passes_state_and_covariates_on():
    latent, covariates = torch.randn(4, 3), torch.randn(4, 2)
    decoder = LinearDecoder(3, 2)
    assert torch.equal(decoder(latent, covariates), torch.cat([latent, covariates], dim=1))
    assert decoder.n_out == 5
    assert not list(decoder.parameters())


def test_samples_share_covariates():
    latent, covariates = torch.randn(6, 4, 3), torch.randn(4, 2)
    found = LinearDecoder(3, 2)(latent, covariates)
    assert found.shape == (6, 4, 5)
    assert torch.equal(found[..., 3:], covariates.expand(6, 4, 2))


def test_loadings_are_a_linear_map_that_starts_small():
    loadings = Loadings(3, 2000)
    assert isinstance(loadings, nn.Linear)
    assert not bool(loadings.bias.any())
    torch.testing.assert_close(loadings.weight.std(), torch.tensor(Loadings.START), rtol=0.05, atol=0)
