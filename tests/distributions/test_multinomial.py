import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from scvae_ext.distributions import sample_multinomial


@pytest.mark.parametrize("total", [1, 3, 40, 900])
def test_counts_of_a_gene_are_binomial_and_totals_exact(total):
    torch.manual_seed(total)
    n, share = 20_000, 0.3
    counts = sample_multinomial(torch.full((n,), float(total)), torch.tensor([[share, 0.5, 0.2]]).expand(n, -1) * 7)
    assert torch.equal(counts.sum(1), torch.full((n,), float(total)))
    edges = np.unique(binom.ppf(np.linspace(0, 1, 12), total, share))
    edges[[0, -1]] = -1, total
    expected = np.diff(binom.cdf(edges, total, share))
    observed = np.histogram(counts[:, 0].numpy(), edges + 0.5)[0]
    assert chisquare(observed, n * expected).pvalue > 1e-3
    # Given the total, the others are the fewer.
    covariance = np.cov(counts.numpy().T)[0, 1]
    assert covariance == pytest.approx(-total * share * 0.5, rel=0.1)


def test_each_cell_has_its_own_total_and_probabilities():
    torch.manual_seed(0)
    total = torch.tensor([0.0, 5.0, 100_000.0])
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1e-20, 3e-20]])
    counts = sample_multinomial(total, weight)
    assert counts[:2].tolist() == [[0.0, 0.0], [0.0, 5.0]]
    assert counts[2, 0].item() == pytest.approx(25_000, abs=5 * (100_000 * 3 / 16) ** 0.5)
    assert counts[2].sum() == 100_000
