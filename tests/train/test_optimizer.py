import copy

import torch

from scvae_ext.train.optimizer import LeanAdamW


def test_it_takes_the_steps_of_torch():
    """Two groups with decay and learning rates of their own, ten steps, the learning rate changed on the way."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((7, 3), (5,), (4,))]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in start] for _ in range(2))
    optimizers = []
    for parameters, kind in ((ours, LeanAdamW), (theirs, torch.optim.AdamW)):
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "weight_decay": 0.0}]
        optimizers.append(kind(groups, lr=0.1, weight_decay=0.3))
    for step in range(10):
        gradients = [torch.randn(tensor.shape) for tensor in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.param_groups[1]["lr"] = 0.1 / (step + 1)
            optimizer.zero_grad()
            assert all(parameter.grad is None for parameter in parameters)
            loss = sum((parameter * gradient).sum() for parameter, gradient in zip(parameters, gradients, strict=True))
            loss.backward()
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_closure_computes_the_gradients_and_its_value_is_returned():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = LeanAdamW([{"params": [parameter]}], lr=0.5, weight_decay=0.0)

    def closure():
        loss = parameter.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    torch.testing.assert_close(parameter.detach(), torch.full((3,), 0.5))


def test_a_parameter_without_a_gradient_stays_as_it_is_and_begins_when_it_has_one():
    ours, theirs = ([torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)] for _ in range(2))
    optimizers = [LeanAdamW([{"params": ours}], lr=0.1, weight_decay=0.1)]
    optimizers.append(torch.optim.AdamW([{"params": theirs}], lr=0.1, weight_decay=0.1))
    for step in range(6):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            chosen = parameters[:1] if step < 3 else parameters
            sum((parameter**2).sum() for parameter in chosen).backward()
            optimizer.step()
        assert step >= 3 or torch.equal(ours[1].detach(), torch.ones(3))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_state_that_is_loaded_in_the_middle_is_what_it_goes_on_with():
    """Training on, a copy, and a new optimizer that loads the state take the same steps, and others do not."""
    parameters = [torch.ones(3, requires_grad=True), torch.full((2,), 2.0, requires_grad=True)]
    optimizer = LeanAdamW([{"params": parameters}], lr=0.1, weight_decay=0.1)

    def step(values, optimizer, slope):
        for value in values:
            value.grad = torch.full_like(value, slope)
        optimizer.step()

    for slope in (1.0, -3.0):
        step(parameters, optimizer, slope)
    before, state = [value.detach().clone() for value in parameters], copy.deepcopy(optimizer.state_dict())
    copied_parameters, copied = copy.deepcopy((parameters, optimizer))
    step(parameters, optimizer, 2.0)
    step(copied_parameters, copied, 2.0)
    after = [value.detach().clone() for value in parameters]
    for steps_before_loading in (0, 3):
        others = [value.clone().requires_grad_() for value in before]
        other = LeanAdamW([{"params": others}], lr=0.1, weight_decay=0.1)
        for _ in range(steps_before_loading):
            step(others, other, 5.0)
        with torch.no_grad():
            for value, start in zip(others, before, strict=True):
                value.copy_(start)
        fresh = [value.clone().requires_grad_() for value in before]
        step(fresh, LeanAdamW([{"params": fresh}], lr=0.1, weight_decay=0.1), 2.0)
        other.load_state_dict(copy.deepcopy(state))
        step(others, other, 2.0)
        for value, same, copied_value, without in zip(others, after, copied_parameters, fresh, strict=True):
            torch.testing.assert_close(value.detach(), same, rtol=0, atol=0)
            torch.testing.assert_close(copied_value.detach(), same, rtol=0, atol=0)
            assert not torch.allclose(without.detach(), same)
