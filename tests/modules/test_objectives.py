import pytest
import torch

from scvae_ext.modules import BatchPenalised, Elbo, FreeBitsElbo, FreeLocation

KL = torch.tensor([[0.1, 2.0, 0.6], [0.3, 4.0, 0.2]])


def _free_bits(free_bits, kl_library=None):
    kl = KL.clone().requires_grad_()
    return kl, FreeBitsElbo(Elbo(torch.tensor([-10.0, -20.0]), kl.sum(1), kl_library), kl, free_bits)


@pytest.mark.parametrize(("free_bits", "paid"), [(0.0, 0.2 + 3.0 + 0.4), (0.3, 0.3 + 3.0 + 0.4), (5.0, 15.0)])
@pytest.mark.parametrize("kl_weight", [0.0, 0.5, 1.0])
def test_free_bits_are_the_least_that_a_dimension_costs_on_average_over_cells(free_bits, paid, kl_weight):
    _, bound = _free_bits(free_bits)
    assert float(bound.score(kl_weight).mean().detach()) == pytest.approx(-15.0 - kl_weight * paid)


def test_dimensions_within_their_free_bits_get_no_gradient():
    kl, bound = _free_bits(0.5)
    bound.score().mean().backward()
    assert kl.grad.tolist() == [[0.0, -0.5, 0.0], [0.0, -0.5, 0.0]]


def test_free_bits_are_not_part_of_what_is_reported():
    _, bound = _free_bits(0.5, torch.tensor([1.0, 2.0]))
    assert bound.terms()["elbo"].detach().tolist() == pytest.approx([-13.7, -26.5])
    assert float(bound.score().mean().detach()) == pytest.approx(-15.0 - (0.5 + 3.0 + 0.5) - 1.5)


def test_the_penalty_is_taken_off_and_reported():
    elbo = Elbo(torch.tensor([-10.0, -20.0]), torch.tensor([1.0, 3.0]))
    penalised = BatchPenalised(elbo, torch.tensor(0.2), 50.0)
    assert penalised.score(0.5).tolist() == pytest.approx([-20.5, -31.5])
    assert penalised.score(0.5, 0.3).tolist() == pytest.approx([-13.5, -24.5])
    terms = penalised.terms()
    assert terms["penalised_elbo"].tolist() == pytest.approx([-21.0, -33.0])
    assert terms["elbo"].tolist() == pytest.approx([-11.0, -23.0])
    assert terms["batch_dependence"].tolist() == pytest.approx([0.2, 0.2])


def test_where_a_cell_lies_is_free_in_what_is_trained_on_and_not_in_the_elbo():
    elbo = Elbo(torch.tensor([-10.0, -20.0]), torch.tensor([4.0, 3.0]))
    free = FreeLocation(elbo, torch.tensor([2.5, 0.5]), "elbo")
    assert free.score(0.5).tolist() == pytest.approx([-10.75, -21.25])
    terms = free.terms()
    assert terms["free_location_elbo"].tolist() == pytest.approx([-11.5, -22.5])
    assert terms["elbo"].tolist() == pytest.approx([-14.0, -23.0])
