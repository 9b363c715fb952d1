import math

import pytest
import torch

from scvae_ext.nn import Encoder, LibraryEncoder
from scvae_ext.nn.encoder import LOG_VARIANCE_LIMIT


def test_posterior_is_a_gaussian_for_each_cell_and_dimension():
    qz = Encoder(5, 8, 3).eval()(torch.randn(4, 5), torch.zeros(4, 0))
    assert qz.loc.shape == qz.scale.shape == (4, 3)
    assert bool((qz.scale > 0).all())


def test_scale_is_the_root_of_the_exponential_of_the_log_variance():
    encoder = Encoder(5, 8, 3).eval()
    with torch.no_grad():
        encoder.log_variance.weight.zero_()
        encoder.log_variance.bias.copy_(torch.log(torch.tensor([4.0, 9.0, 0.25])))
    qz = encoder(torch.randn(4, 5), torch.zeros(4, 0))
    torch.testing.assert_close(qz.scale, torch.tensor([2.0, 3.0, 0.5]).expand(4, 3))


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_no_variance_overflows(value):
    encoder = Encoder(5, 8, 3).eval()
    with torch.no_grad():
        encoder.log_variance.bias.fill_(value)
    scale = encoder(torch.randn(4, 5), torch.zeros(4, 0)).scale
    torch.testing.assert_close(scale.log().abs(), torch.full((4, 3), LOG_VARIANCE_LIMIT / 2))


def test_covariates_change_the_posterior():
    encoder = Encoder(5, 8, 3, n_covariates=1).eval()
    x = torch.randn(4, 5)
    assert not torch.allclose(encoder(x, torch.zeros(4, 1)).loc, encoder(x, torch.ones(4, 1)).loc)


def test_options_reach_the_network():
    encoder = Encoder(5, 8, 3, 3, 2, inject_everywhere=False, normalisation="layer", dropout_rate=0.25)
    assert [layer.covariates is not None for layer in encoder.mlp.layers] == [True, False, False]
    assert all(layer.layer_norm is not None and layer.batch_norm is None for layer in encoder.mlp.layers)
    assert {layer.dropout_rate for layer in encoder.mlp.layers} == {0.25}


def test_library_posterior_starts_near_the_observed_total():
    log_size = torch.tensor([0.0, 5.0, 12.0])
    q = LibraryEncoder(5, 8).eval()(torch.rand(3, 5), torch.zeros(3, 0), log_size)
    assert q.loc.shape == q.scale.shape == (3,)
    torch.testing.assert_close(q.loc, log_size, atol=0.5, rtol=0)
    assert bool((q.scale < 0.5).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_library_posterior_stays_within_a_factor_of_the_observed_total(sign):
    encoder = LibraryEncoder(5, 8).eval()
    with torch.no_grad():
        encoder.offset.bias.fill_(sign * 1e6)
        encoder.log_variance.bias.fill_(1e6)
    q = encoder(torch.rand(3, 5), torch.zeros(3, 0), torch.full((3,), 8.0))
    torch.testing.assert_close(q.loc, torch.full((3,), 8.0 + sign * LibraryEncoder.MAX_LOG_OFFSET))
    torch.testing.assert_close(q.scale, torch.full((3,), math.exp(LOG_VARIANCE_LIMIT / 2)))
