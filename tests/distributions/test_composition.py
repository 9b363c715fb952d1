import pytest
import torch

from scvae_ext.distributions import Composition, LinearLogits, NegativeBinomial, ZeroInflated
from scvae_ext.minibatch import SparseCounts

N_CELLS, N_GENES = 9, 21


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _parameters(generator, n_samples, per_gene_inflation):
    leading = () if n_samples is None else (n_samples,)
    logits = torch.randn(*leading, N_CELLS, N_GENES, generator=generator)
    depth = torch.rand(N_CELLS, generator=generator) * 200 + 20
    theta = torch.rand(N_GENES, generator=generator) * 3 + 0.2
    inflation = torch.randn(*(() if per_gene_inflation else (*leading, N_CELLS)), N_GENES, generator=generator)
    return logits, depth, theta, inflation


def _scored(make, counts, parameters, upstream):
    parameters = [value.clone().requires_grad_() for value in parameters]
    score = make(*parameters).log_prob_sum(counts)
    return score, *torch.autograd.grad((score * upstream.to(score.dtype)).sum(), parameters)


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("inflation", [None, "count", "gene"])
def test_score_and_gradients_are_those_of_torch_in_double_precision(generator, n_samples, inflation):
    logits, depth, theta, zero_logits = _parameters(generator, n_samples, inflation == "gene")
    counts = torch.poisson(torch.rand(N_CELLS, N_GENES, generator=generator) * 3, generator=generator)
    upstream = torch.rand(logits.shape[:-1], generator=generator) + 0.5

    def composed(logits, depth, theta, *zero_logits):
        base = NegativeBinomial(Composition(logits, depth), theta)
        return ZeroInflated(base, *zero_logits) if zero_logits else base

    def plain(logits, depth, theta, *zero_logits):
        base = NegativeBinomial(logits.softmax(-1) * depth.unsqueeze(-1) + 1e-30, theta)
        return ZeroInflated(base, *zero_logits) if zero_logits else base

    parameters = [logits, depth, theta, *([] if inflation is None else [zero_logits])]
    results = _scored(composed, SparseCounts.from_dense(counts), parameters, upstream)
    doubles = [value.double() for value in parameters]
    truth = _scored(plain, SparseCounts.from_dense(counts.double()), doubles, upstream)
    for result, exact in zip(results, truth, strict=True):
        assert result.shape == exact.shape
        torch.testing.assert_close(result.double(), exact, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("inflated", [None, "logits", "linear"])
def test_logits_of_a_linear_map_need_not_be_computed_beforehand(generator, n_samples, inflated):
    """Score and derivatives by activations, weight and bias against torch in double precision."""
    leading = () if n_samples is None else (n_samples,)
    hidden = torch.randn(*leading, N_CELLS, 7, generator=generator)
    weight, bias = torch.randn(N_GENES, 7, generator=generator), torch.randn(N_GENES, generator=generator)
    _, depth, theta, zero_logits = _parameters(generator, n_samples, False)
    counts = torch.poisson(torch.rand(N_CELLS, N_GENES, generator=generator) * 3, generator=generator)
    upstream = torch.rand(hidden.shape[:-1], generator=generator) + 0.5

    def lazy(hidden, weight, bias):
        linear = torch.nn.Linear(7, N_GENES)
        del linear.weight, linear.bias
        linear.weight, linear.bias = weight, bias
        return LinearLogits(hidden, linear)

    def composed(hidden, weight, bias, depth, theta, *of_zeros):
        base = NegativeBinomial(Composition(lazy(hidden, weight, bias), depth), theta)
        if inflated is None:
            return base
        return ZeroInflated(base, lazy(hidden, *of_zeros) if inflated == "linear" else of_zeros[0])

    def plain(hidden, weight, bias, depth, theta, *of_zeros):
        logits = hidden @ weight.T + bias
        base = NegativeBinomial(logits.softmax(-1) * depth.unsqueeze(-1) + 1e-30, theta)
        if inflated is None:
            return base
        return ZeroInflated(base, hidden @ of_zeros[0].T + of_zeros[1] if inflated == "linear" else of_zeros[0])

    zero_weight, zero_bias = (torch.randn(shape, generator=generator) for shape in ((N_GENES, 7), (N_GENES,)))
    of_zeros = {None: [], "logits": [zero_logits], "linear": [zero_weight, zero_bias]}[inflated]
    parameters = [hidden, weight, bias, depth, theta, *of_zeros]
    results = _scored(composed, SparseCounts.from_dense(counts), parameters, upstream)
    doubles = [value.double() for value in parameters]
    truth = _scored(plain, SparseCounts.from_dense(counts.double()), doubles, upstream)
    for result, exact in zip(results, truth, strict=True):
        assert result.shape == exact.shape
        torch.testing.assert_close(result.double(), exact, rtol=5e-5, atol=5e-5)


def test_a_composition_is_a_mean_to_everything_else(generator):
    logits, depth, theta, _ = _parameters(generator, None, False)
    mean = logits.double().softmax(-1) * depth.double().unsqueeze(-1)
    composed, plain = NegativeBinomial(Composition(logits, depth), theta), NegativeBinomial(mean.float(), theta)
    assert composed.batch_shape == plain.batch_shape
    torch.testing.assert_close(composed.mean, mean.float())
    torch.testing.assert_close(composed.variance, plain.variance)
    torch.testing.assert_close(composed.log_prob_zero(), plain.log_prob_zero())
    value = torch.ones(N_CELLS, N_GENES)
    torch.testing.assert_close(composed.log_prob(value), plain.log_prob(value))
    torch.testing.assert_close(composed.expand((2, N_CELLS, N_GENES)).mean, plain.mean.expand(2, N_CELLS, N_GENES))


def test_an_underflow_of_the_softmax_leaves_counts_possible():
    composed = NegativeBinomial(Composition(torch.tensor([[0.0, -200.0]]), torch.tensor([10.0])), torch.ones(2))
    score = composed.log_prob_sum(SparseCounts.from_dense(torch.tensor([[3.0, 1.0]])))
    assert bool((torch.isfinite(score) & (score < -60)).all())


@pytest.mark.parametrize("change", ["double", "theta of each cell", "other shape"])
def test_what_the_fast_road_cannot_take_goes_the_plain_one(generator, change):
    logits, depth, theta, _ = _parameters(generator, None, False)
    counts = torch.poisson(torch.rand(N_CELLS, N_GENES, generator=generator) * 3, generator=generator)
    if change == "double":
        logits, depth, theta, counts = (value.double() for value in (logits, depth, theta, counts))
    if change == "theta of each cell":
        theta = theta.expand(N_CELLS, N_GENES) * torch.rand(N_CELLS, 1, generator=generator)
    if change == "other shape":
        counts = counts[:-1]
    composed = NegativeBinomial(Composition(logits, depth), theta)
    sparse = SparseCounts.from_dense(counts)
    assert composed.composed_log_prob_sum(sparse) is None
    if change == "other shape":
        with pytest.raises(ValueError, match=f"counts of {N_CELLS - 1} cells and {N_GENES} genes do not fit"):
            composed.log_prob_sum(sparse)
    else:
        expected = NegativeBinomial(composed.mean, theta).log_prob_sum(sparse)
        torch.testing.assert_close(composed.log_prob_sum(sparse), expected)
