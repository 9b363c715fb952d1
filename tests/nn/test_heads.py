from copy import deepcopy

import numpy as np
import pytest
import torch

from scvae_ext.nn import ExpressionHead, LogExpressionHead, heads

HIDDEN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
EXPRESSION = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])


def _constant(head):
    """Let a head depend on its bias alone."""
    with torch.no_grad():
        head.linear.weight.zero_()
    return head


def test_shares_are_positive_and_sum_to_one():
    expression = ExpressionHead(3, 5)(HIDDEN.expand(2, 4, 3))
    assert expression.shape == (2, 4, 5)
    assert bool((expression > 0).all())
    torch.testing.assert_close(expression.sum(-1), torch.ones(2, 4))


def test_shares_start_from_the_means():
    head = _constant(ExpressionHead(3, 5))
    head.initialise(EXPRESSION)
    # A gene without counts starts at half of the smallest mean.
    expected = np.array([0.5, 0.3, 0.15, 0.05, 0.025]) / 1.025
    np.testing.assert_allclose(head(HIDDEN).detach(), np.tile(expected, (4, 1)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_rates_start_from_the_means(scale):
    head = _constant(ExpressionHead(3, 4, compositional=False))
    head.initialise(EXPRESSION[:4] * scale)
    torch.testing.assert_close(head(HIDDEN), (EXPRESSION[:4] * scale).expand(4, 4), rtol=1e-4, atol=0)


def test_log_expression_starts_from_the_means():
    head = _constant(LogExpressionHead(3, 5))
    head.initialise(torch.arange(5.0))
    assert torch.equal(head(HIDDEN), torch.arange(5.0).expand(4, 5))


def test_log_expression_is_taken_back_from_the_log():
    head = _constant(LogExpressionHead(3, 3, compositional=False))
    head.initialise(torch.log1p(torch.tensor([2.0, 6.0, 0.0])))
    torch.testing.assert_close(head.expression(HIDDEN), torch.tensor([2.0, 6.0, 0.0]).expand(4, 3))


def test_log_expression_of_shares_sums_to_one_and_is_not_negative():
    head = _constant(LogExpressionHead(3, 3))
    head.initialise(torch.tensor([1.0, 2.0, -3.0]))
    values = np.array([np.expm1(1), np.expm1(2), 0])
    np.testing.assert_allclose(head.expression(HIDDEN).detach(), np.tile(values / values.sum(), (4, 1)), rtol=1e-5)


def test_expression_of_a_cell_without_any_is_zero_rather_than_nan():
    head = _constant(LogExpressionHead(3, 3))
    head.initialise(-torch.ones(3))
    assert torch.equal(head.expression(HIDDEN), torch.zeros(4, 3))


@pytest.mark.parametrize(
    "head", [ExpressionHead(3, 5), ExpressionHead(3, 5, compositional=False), LogExpressionHead(3, 5)]
)
@pytest.mark.parametrize("columns", [None, torch.tensor([4, 0, 4])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_expression_is_written_summed_over_samples_and_scaled(head, columns, dtype):
    head = deepcopy(head).to(dtype)
    hidden, scale = torch.randn(3, 4, 3, dtype=dtype), torch.tensor([1.0, 2.0, 0.5, 1e4], dtype=dtype)
    expected = head.expression(hidden).sum(0) * scale.unsqueeze(-1)
    expected = expected if columns is None else expected[:, columns]
    result = torch.full_like(expected, torch.nan)
    head.write_expression(hidden, scale, columns, result, add=False)
    torch.testing.assert_close(result, expected)
    head.write_expression(hidden, scale, columns, result, add=True)
    torch.testing.assert_close(result, 2 * expected)


@pytest.mark.parametrize("logits_at_once", [1, 10, 11, 1000])
@torch.no_grad()
def test_cells_are_written_a_few_at_a_time(logits_at_once, monkeypatch):
    """Five genes: one cell at a time, two, two and a rest that is left out, all."""
    monkeypatch.setattr(heads, "LOGITS_AT_ONCE", logits_at_once)
    head, hidden, scale = ExpressionHead(3, 5), torch.randn(2, 7, 3), torch.arange(1.0, 8.0)
    expected = torch.nn.functional.linear(hidden, head.linear.weight, head.linear.bias).softmax(-1).sum(0)
    result = torch.full((7, 5), torch.nan)
    head.write_expression(hidden, scale, None, result, add=False)
    torch.testing.assert_close(result, expected * scale.unsqueeze(-1))
    with torch.autocast("cpu"):
        head.write_expression(hidden, scale, None, result, add=True)
    torch.testing.assert_close(result, 2 * expected * scale.unsqueeze(-1), rtol=2e-2, atol=1e-3)


def test_loadings_of_residual_factors_start_as_small_as_other_weights():
    head = ExpressionHead(16, 200, n_residual=9)
    bound = 1 / 25**0.5
    assert 0.9 * bound < float(head.residual_loadings.detach().abs().max()) <= bound
    assert 0.9 * bound < float(head.linear.weight[:, :16].detach().abs().max()) <= bound
