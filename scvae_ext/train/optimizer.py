"""AdamW without what torch's does for every parameter in every step."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import override

__all__ = ["LeanAdamW"]


class _Moments:
    """Parameters that are updated together, and their state as lists, which the fused kernel takes."""

    def __init__(self, parameters: list[Tensor], states: list[dict[str, Any]]) -> None:
        self.parameters = parameters
        self.means: list[Tensor] = [state["exp_avg"] for state in states]
        self.squares: list[Tensor] = [state["exp_avg_sq"] for state in states]
        self.steps: list[Tensor] = [state["step"] for state in states]
        # Parameters that began together share a counter.
        self.counters = list({id(step): step for step in self.steps}.values())


class LeanAdamW(torch.optim.AdamW):
    """AdamW whose step is one call of torch's fused kernel for each group of parameters, and little besides.

    The same numbers as ``torch.optim.AdamW(..., fused=True)``, in whose steps a network of a dozen parameters spends
    more time on lists, checks and one counter for each parameter than on the arithmetic.

    Parameters
    ----------
    groups
        Groups of parameters, as for :class:`torch.optim.AdamW`.
    lr, weight_decay
        As for :class:`torch.optim.AdamW`.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=True)
        self._known: dict[int, _Moments] = {}

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter.

        Parameters
        ----------
        closure
            Computes the gradients, where that has not been done; what it returns is returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            moments = self._moments_of(group)
            if not moments.parameters:
                continue
            for counter in moments.counters:
                counter += 1
            torch._fused_adamw_(
                moments.parameters,
                [cast(Tensor, parameter.grad) for parameter in moments.parameters],
                moments.means,
                moments.squares,
                [],
                moments.steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
        return result

    def _moments_of(self, group: dict[str, Any]) -> "_Moments":
        """Return what has been gathered by the parameters of a group that have a gradient, in lists that are kept."""
        of_group: list[Tensor] = group["params"]
        is_complete = all(parameter.grad is not None for parameter in of_group)
        known = self._known.get(id(of_group))
        # Who replaces the state of one parameter (by loading, or moving it elsewhere) replaces that of all.
        same = known is not None and is_complete and len(known.parameters) == len(of_group)
        if known is not None and same and self.state[of_group[0]].get("exp_avg") is known.means[0]:
            return known
        parameters = [parameter for parameter in of_group if parameter.grad is not None]
        # It is empty for a parameter that has not begun.
        self._begin([parameter for parameter in parameters if not self.state[parameter]])
        moments = _Moments(parameters, [self.state[parameter] for parameter in parameters])
        if is_complete and parameters:
            self._known[id(of_group)] = moments
        return moments

    def _begin(self, parameters: list[Tensor]) -> None:
        if not parameters:
            return
        counter = torch.zeros((), dtype=torch.float32, device=parameters[0].device)
        for parameter in parameters:
            self.state[parameter].update(
                step=counter, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
            )

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._known = {}

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Parameters
        ----------
        set_to_none
            Gradients are always set to ``None``.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
