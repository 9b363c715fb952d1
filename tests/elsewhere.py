"""A device in name only, for what would otherwise need a GPU to be seen.

Its tensors lie in the memory of the host, but torch and the package take them for those of a device called "elsewhere".
What a GPU refuses is refused: tensors of two devices in one operation, NumPy on a tensor of the device. What makes the
host wait for a GPU is written down: values that are read, and results whose size depends on values; and so is what is
sent there. Operations are those of the CPU, so that results can be compared with its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "elsewhere"
DEVICE = f"{NAME}:0"
COPIES = {"_to_copy", "copy_"}
# Their values reach the host, or the size of their result is known only there.
READS = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "bincount"}


class Elsewhere(TorchDispatchMode):
    """Where tensors can be on the device.

    ``waits`` and ``sent`` hold the name of each operation that the host would have waited for, and of each that sent
    something.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Do an operation in the memory of the host, on behalf of the device where it belongs there."""
        if func._can_decompose():  # into what a GPU is asked for
            with self:
                decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        values, shape = _pytree.tree_flatten((args, kwargs))
        theirs = [value for value in values if isinstance(value, _There)]
        ours = [value for value in values if isinstance(value, torch.Tensor) and not isinstance(value, _There)]
        name = func._schema.name.removeprefix("aten::")
        target = kwargs.get("device")
        is_sent = target is not None and torch.device(target).type == NAME
        self._require_one_device(name, theirs, ours)
        if self._is_read(name, args, kwargs, theirs):
            self.waits.append(name)
        if name in COPIES and theirs and (ours if name == "copy_" else target is not None and not is_sent):
            (self.waits if name == "_to_copy" or isinstance(args[1], _There) else self.sent).append(name)
        if name == "_to_copy" and is_sent and not theirs:
            self.sent.append(name)
        plain = [value.on_host if isinstance(value, _There) else value for value in values]
        host_args, host_kwargs = _pytree.tree_unflatten(plain, shape)
        if is_sent:
            host_kwargs = {**host_kwargs, "device": torch.device("cpu")}
        result = func(*host_args, **host_kwargs)
        if not (is_sent or (theirs and target is None)):
            return result
        known = {id(value.on_host): value for value in theirs}  # what was changed in place
        return _pytree.tree_map_only(
            torch.Tensor, lambda one: known.get(id(one)) if id(one) in known else _wrap(one), result
        )

    def _require_one_device(self, name, theirs, ours):
        # A number is taken from the host, but not by the kernel that updates all parameters.
        strict = name.startswith("_fused_adam")
        if theirs and name not in COPIES and any(value.dim() > 0 or strict for value in ours):
            raise RuntimeError(f"{name}: tensors of two devices")

    def _is_read(self, name, args, kwargs, theirs):
        if not theirs:
            return False
        if name.startswith("index"):
            chosen = [index for index in _pytree.tree_leaves(args[1]) if isinstance(index, torch.Tensor)]
            return any(index.dtype in (torch.bool, torch.uint8) for index in chosen)
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        return name in READS


class _There(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, on_host):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            on_host.size(),
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            device=DEVICE,
        )
        tensor.on_host = on_host
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _present().run(func, args, kwargs or {})

    def tolist(self):
        _present().waits.append("tolist")
        return self.on_host.tolist()

    def numpy(self, **options):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy.")

    __array__ = numpy


def _wrap(on_host):
    with torch.inference_mode(False):  # a tensor that is made in inference mode can be no view of one that was not
        return _There(on_host)


# The first is for tensors that outlive their test's.
_entered = [Elsewhere()]


def _present():
    return _entered[-1]


class _Module:
    """What torch asks of the module of a device."""

    def is_available(self):
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self):
        return False

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass

    def get_rng_state(self, device=0):
        return torch.zeros(1)

    def set_rng_state(self, state, device=0):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class _HostGenerator(torch.Generator):
    """A generator of the host, whatever device was asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


class _Accelerator(Accelerator):
    def setup_device(self, device):
        pass

    def get_device_stats(self, device):
        return {}

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return 1

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(DEVICE)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME


def strategy():
    """Return Lightning's strategy for training there."""
    return SingleDeviceStrategy(device=torch.device(DEVICE), accelerator=_Accelerator())


def register() -> None:
    """Tell torch of the device, which has to be before the first backward pass; it does nothing by itself."""
    of_python = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if of_python is not None:
        of_python(NAME, _Module())


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    """Make the device available."""
    if not hasattr(torch, NAME):
        pytest.skip(f"torch {torch.__version__} has no devices that are written in Python")
    host_generator, lifts = torch.Generator, torch._C._only_lift_cpu_tensors()
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    mode = Elsewhere()
    _entered.append(mode)
    try:
        torch.Generator = _HostGenerator
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) goes by the mode
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the objects that they were
        with mode:
            yield mode
    finally:
        _entered.pop()
        torch.Generator = host_generator
        torch._C._set_only_lift_cpu_tensors(lifts)
        torch.__future__.set_swap_module_params_on_conversion(swaps)
