import pytest
import torch

from scvae_ext.nn import MLP

NO_COVARIATES = torch.zeros(6, 0)


def test_one_layer_is_relu_of_a_linear_map():
    mlp = MLP(3, 4, normalisation="none").eval()
    x = torch.randn(6, 3)
    linear = mlp.layers[0].linear
    torch.testing.assert_close(mlp(x, NO_COVARIATES), (x @ linear.weight.T + linear.bias).clamp_min(0))


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_number_of_layers(n_layers):
    mlp = MLP(3, 4, n_layers)
    assert len(mlp.layers) == n_layers
    assert mlp(torch.randn(6, 3), NO_COVARIATES).shape == (6, 4)


@pytest.mark.parametrize("normalisation", ["batch", "layer", "none"])
def test_axes_of_samples_give_the_same_as_one_call_a_sample(normalisation):
    mlp = MLP(3, 4, 2, 2, normalisation=normalisation).eval()
    x, covariates = torch.randn(5, 2, 6, 3), torch.randn(6, 2)
    expected = torch.stack([torch.stack([mlp(inner, covariates) for inner in outer]) for outer in x])
    torch.testing.assert_close(mlp(x, covariates), expected)


def test_batch_normalisation_standardises_units_over_cells():
    mlp = MLP(3, 4, normalisation="batch").train()
    layer, x = mlp.layers[0], torch.randn(200, 3) * 5 + 7
    output = mlp(x, torch.zeros(200, 0))
    hidden = layer.linear(x).detach()
    standardised = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(output.detach(), standardised.relu(), atol=1e-5, rtol=1e-5)


def test_layer_normalisation_makes_a_cell_independent_of_the_others():
    mlp = MLP(3, 4, normalisation="layer").train()
    x = torch.randn(6, 3)
    torch.testing.assert_close(mlp(x, NO_COVARIATES)[:2], mlp(x[:2], NO_COVARIATES[:2]))


@pytest.mark.parametrize(("inject_everywhere", "seen_by"), [(True, 3), (False, 1)])
def test_covariates_enter_every_layer_or_the_first(inject_everywhere, seen_by):
    mlp = MLP(3, 4, 3, 2, inject_everywhere=inject_everywhere)
    assert sum(layer.covariates is not None for layer in mlp.layers) == seen_by
    assert mlp.layers[0].covariates is not None


def test_covariates_change_the_result():
    mlp = MLP(3, 8, 1, 1).eval()
    x = torch.randn(6, 3)
    assert not torch.allclose(mlp(x, torch.zeros(6, 1)), mlp(x, torch.ones(6, 1)))


def test_dropout_leaves_out_its_share_of_units_in_training_and_keeps_the_mean():
    mlp = MLP(1, 20_000, normalisation="none", dropout_rate=0.3)
    with torch.no_grad():
        mlp.layers[0].linear.weight.zero_()
        mlp.layers[0].linear.bias.fill_(1.0)
    one_cell = torch.zeros(1, 1), torch.zeros(1, 0)
    hidden = mlp.train()(*one_cell).detach()
    assert float((hidden == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(hidden.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(mlp.eval()(*one_cell), torch.ones(1, 20_000))


@pytest.mark.parametrize(("normalisation", "has_bias"), [("batch", False), ("layer", True), ("none", True)])
def test_no_bias_is_built_that_batch_normalisation_would_cancel(normalisation, has_bias):
    assert (MLP(3, 4, normalisation=normalisation).layers[0].linear.bias is not None) is has_bias
