import pytest
import torch

from scvae_ext.nn import Dispersion
from scvae_ext.nn.dispersion import LOG_DISPERSION_RANGE

BATCH, LABEL = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 2])
HIDDEN = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_dispersion_of_a_gene_is_one_vector():
    dispersion = Dispersion("gene", 3, 5, 2, 3)
    dispersion.initialise(torch.arange(1.0, 6.0))
    torch.testing.assert_close(dispersion(HIDDEN, BATCH, LABEL), torch.arange(1.0, 6.0))


@pytest.mark.parametrize(("kind", "rows", "n_rows"), [("gene-batch", BATCH, 2), ("gene-label", LABEL, 3)])
def test_dispersion_of_a_category_is_that_of_the_cell(kind, rows, n_rows):
    dispersion = Dispersion(kind, 3, 5, 2, 3)
    values = torch.arange(1.0, 1 + n_rows * 5).view(n_rows, 5)
    with torch.no_grad():
        dispersion.log_value.copy_(values.log())
    torch.testing.assert_close(dispersion(HIDDEN, BATCH, LABEL), values[rows])


def test_dispersion_of_a_cell_depends_on_it_and_keeps_axes_of_samples():
    dispersion = Dispersion("gene-cell", 3, 5, 2, 3)
    value = dispersion(HIDDEN.expand(2, 4, 3), BATCH, LABEL)
    assert value.shape == (2, 4, 5)
    assert len(value[0].unique(dim=0)) == 4


@pytest.mark.parametrize("kind", ["gene", "gene-batch", "gene-label"])
def test_a_dispersion_builds_no_network_that_it_does_not_use(kind):
    assert [name for name, _ in Dispersion(kind, 3, 5, 2, 3).named_parameters()] == ["log_value"]


@pytest.mark.parametrize(("start", "limit"), [(1e30, LOG_DISPERSION_RANGE[1]), (1e-30, LOG_DISPERSION_RANGE[0])])
def test_dispersion_stays_in_the_range_that_matters(start, limit):
    dispersion = Dispersion("gene", 3, 5, 1, 1)
    dispersion.initialise(torch.full((5,), start))
    torch.testing.assert_close(dispersion(HIDDEN, BATCH, LABEL), torch.full((5,), limit).exp())


@pytest.mark.parametrize(("kind", "n_rows"), [("gene", 1), ("gene-batch", 2), ("gene-label", 3)])
def test_the_prior_is_gaussian_about_the_mean_of_the_genes_of_each_category(kind, n_rows):
    dispersion = Dispersion(kind, 3, 5, 2, 3)
    with torch.no_grad():
        dispersion.log_value.normal_(generator=torch.Generator().manual_seed(1))
        dispersion.log_value += 10 * torch.arange(float(n_rows)).view(*dispersion.log_value.shape[:-1], 1)
    rows = dispersion.log_value.detach().view(n_rows, 5)
    expected = -0.5 * ((rows - rows.mean(1, keepdim=True)) / 0.5).square().sum()
    found = dispersion.log_prior()
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    torch.testing.assert_close(dispersion.log_value.grad.view(n_rows, 5), -(rows - rows.mean(1, keepdim=True)) / 0.25)
