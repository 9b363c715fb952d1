import numpy as np
import pytest
import torch

from scvae_ext.kernels import dependence_and_gradient
from scvae_ext.modules.dependence import SQUARED_WIDTHS, batch_dependence

WIDTHS = np.array(SQUARED_WIDTHS, dtype=np.float32)


def drawn(n, dimensions, n_groups, shift, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(n_groups, size=n)
    points = rng.normal(size=(n, dimensions)) + shift * group[:, np.newaxis]
    return points.astype(np.float32), group


# Not with four points, of which the measure is a small difference of large terms.
@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])
@pytest.mark.parametrize(("n", "dimensions", "n_groups"), [(5, 3, 2), (64, 10, 2), (127, 10, 3), (128, 2, 9)])
def test_value_and_gradient_are_those_of_the_definition_in_double_precision(n, dimensions, n_groups, shift):
    points, group = drawn(n, dimensions, n_groups, shift)
    group[:2] = 0, 1
    exact = torch.from_numpy(points).double().requires_grad_()
    expected = batch_dependence(exact, torch.from_numpy(group))
    expected.backward()
    value, gradient = dependence_and_gradient(points, group, WIDTHS)
    assert value == pytest.approx(float(expected.detach()), abs=1e-5)
    scale = float(exact.grad.abs().max())
    assert scale > 0
    np.testing.assert_allclose(gradient / scale, exact.grad / scale, atol=1e-5)


def test_a_step_along_the_gradient_changes_the_value_by_its_length():
    points, group = drawn(100, 4, 2, 1.0)
    value, gradient = dependence_and_gradient(points, group, WIDTHS)
    # The unit of the kernels follows the points, where the gradient holds it fixed: moves that keep distances on the
    # whole, here along one axis to either side, leave it about where it is.
    gradient[:, 1:] = 0
    step = np.float32(1e-2 / np.linalg.norm(gradient))
    after, _ = dependence_and_gradient(points - step * gradient, group, WIDTHS)
    assert value - after == pytest.approx(step * np.square(gradient).sum(), rel=0.1)


@pytest.mark.parametrize("case", ["one group", "one point"])
def test_what_has_no_dependence_has_no_gradient(case):
    points, group = drawn(20, 3, 2, 1.0)
    if case == "one group":
        group[:] = 1
    else:
        points[:] = points[0]
    value, gradient = dependence_and_gradient(points, group, WIDTHS)
    assert value == 0
    assert not gradient.any()


def test_a_value_that_is_not_a_number_is_not_lost():
    points, group = drawn(20, 3, 2, 1.0)
    points[3, 1] = np.nan
    value, _ = dependence_and_gradient(points, group, WIDTHS)
    assert np.isnan(value)
