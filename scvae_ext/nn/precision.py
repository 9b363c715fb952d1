"""Where mixed precision ends, and that everything else is in single precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scvae_ext.distributions import LinearLogits

__all__ = ["full_precision", "linear_logits", "single_precision"]

_lock = Lock()
_n_within = 0
_default_outside = torch.float32


@contextmanager
def single_precision() -> Iterator[None]:
    """Make tensors float32 within, whatever the user has set by ``torch.set_default_dtype``.

    Counts and saved weights are float32: layers and noise have to go with them. The default is that of all threads, of
    which Dask has several within: the last to leave puts it back.
    """
    global _n_within, _default_outside
    with _lock:
        if not _n_within:
            _default_outside = torch.get_default_dtype()
        _n_within += 1
        torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        with _lock:
            _n_within -= 1
            if not _n_within:
                torch.set_default_dtype(_default_outside)


def full_precision(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return what a linear map gave under autocast as float32, and anything else as it is.

    Posteriors and likelihoods are computed from it: bfloat16 has eight bits, with which a count of 1,001 is 1,000.

    Parameters
    ----------
    values
        Output of a linear map.
    """
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def linear_logits(
    linear: nn.Linear, hidden: Float[Tensor, "*samples cells hidden"]
) -> Float[Tensor, "*samples cells genes"] | LinearLogits:
    """Return what gives the logits of a likelihood when they are needed, or under autocast themselves, as float32.

    Parameters
    ----------
    linear
        The map.
    hidden
        Its input.
    """
    mixed = hidden.dtype != linear.weight.dtype or torch.is_autocast_enabled(hidden.device.type)
    return full_precision(linear(hidden)) if mixed else LinearLogits(hidden, linear)
