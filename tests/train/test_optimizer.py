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
