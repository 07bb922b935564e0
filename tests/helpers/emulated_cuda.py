"""A CUDA device made of CPU tensors, for machines without one: what must not mix does not mix.

Inside `emulated_cuda()` torch sees one CUDA device. Its tensors are computed on the CPU by the same
kernels, but say `cuda:0`, meet CPU tensors only where real ones may (a scalar beside them), refuse
`.numpy()`, and every read of them by the host is counted in `trips`. This tests where tensors are
and what waits for them, not CUDA's arithmetic or speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
_READS = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default),
    *(aten.bincount.default, aten.repeat_interleave.Tensor, aten.repeat_interleave.self_Tensor),
}
"""What makes the host wait for the device: it is told a value, or the size of the answer depends on one."""
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""What takes indices, those of the host too."""


class CudaTensor(Tensor):
    """A tensor on the emulated device; `held` is the CPU's."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> CudaTensor:
        kwargs = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=held.device, **kwargs)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {DEVICE}"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


trips: Counter[str] = Counter()
"""Waits of the host for the emulated device, by what it read."""


@contextmanager
def a_cuda_device() -> Iterator[None]:
    """A real CUDA device where there is one, an emulated one elsewhere."""
    if torch.cuda.is_available():
        yield
    else:
        with emulated_cuda():
            yield


@contextmanager
def no_trips() -> Iterator[None]:
    """Raises RuntimeError where the host waits for the device inside."""
    if not isinstance(torch.zeros(1, device="cuda"), CudaTensor):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return
    earlier = Counter(trips)
    yield
    if trips != earlier:
        raise RuntimeError(f"the host waits for the device: {dict(trips - earlier)}")


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """An operator of which at least one argument is on the device."""
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
    others = [v for v in tensors if not isinstance(v, CudaTensor) and v.dim() > 0]
    if func is aten.copy_.default:
        if not isinstance(args[0], CudaTensor):
            trips["copy_"] += 1
            return args[0].copy_(args[1].held)
        trips["copy_"] += not isinstance(args[1], CudaTensor)
    elif others:
        trips["indices from the host"] += 1
        if func not in _INDEXED or others[0].dtype not in (torch.int64, torch.bool):
            shapes = ", ".join(f"{tuple(v.shape)} {v.device}" for v in tensors)
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {shapes} in {func}")
    masked = func in _INDEXED and any(v is not None and v.dtype == torch.bool for v in args[1])
    if func in _READS or masked:
        trips[func.__name__] += 1
    plain = tree_map(lambda v: v.held if isinstance(v, CudaTensor) else v, (args, kwargs))
    plain = tree_map(lambda v: torch.device("cpu") if isinstance(v, torch.device) else v, plain)
    out = tree_map(lambda v: CudaTensor(v) if isinstance(v, Tensor) else v, func(*plain[0], **plain[1]))
    return return_and_correct_aliasing(func, args, kwargs, out)


class _Move(torch.autograd.Function):
    """Between host and device, and back for the gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, back: bool) -> Tensor:
        ctx.back = back
        if back:
            trips["to cpu"] += 1
            assert isinstance(value, CudaTensor)
            return value.held.clone()
        trips["to cuda"] += 1
        return CudaTensor(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(gradient, not ctx.back), None


def _moved(value: Tensor, device: torch.device) -> Tensor:
    here = isinstance(value, CudaTensor)
    if here == (device.type == "cuda"):
        return value
    return _Move.apply(value, here)  # type: ignore[no-untyped-call,no-any-return]


class _Generator(torch.Generator):
    """Draws for the device, on the host."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")


class _Made(TorchDispatchMode):
    """Tensors that an operator of the device makes inside itself are on the device too."""

    within = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, Tensor)]
        wanted = kwargs.get("device")
        if any(isinstance(v, CudaTensor) for v in tensors):
            return _computed(func, args, kwargs)
        if wanted is not None and torch.device(wanted).type == "cuda":
            return CudaTensor(func(*args, **{**kwargs, "device": torch.device("cpu")}))
        out = func(*args, **kwargs)
        if not tensors and self.within and isinstance(out, Tensor):
            return CudaTensor(out)
        return out


class _Calls(TorchFunctionMode):
    """Moves between host and device, and what is made on the device by name."""

    def __init__(self, made: _Made) -> None:
        super().__init__()
        self.made = made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.cpu, Tensor.cuda):
            return _moved(args[0], torch.device("cpu") if func is Tensor.cpu else DEVICE)
        if func is Tensor.to:
            return self._to(args, kwargs)
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], CudaTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is Tensor.tolist and isinstance(args[0], CudaTensor):
            trips["tolist"] += 1
            return args[0].held.tolist()
        if func is torch.as_tensor or func is torch.asarray:
            wanted = torch.device(kwargs.pop("device", None) or (args[0].device if isinstance(args[0], Tensor) else "cpu"))
            if isinstance(args[0], Tensor):
                return _moved(args[0] if kwargs.get("dtype") is None else args[0].to(kwargs["dtype"]), wanted)
            return _moved(func(*args, **kwargs), wanted)
        ours = any(isinstance(v, CudaTensor) for v in tree_flatten((args, kwargs))[0])
        wanted = kwargs.get("device")
        if func is Tensor.new_tensor and isinstance(args[0], CudaTensor):
            trips["new_tensor"] += 1
            return CudaTensor(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        if wanted is not None and not ours:
            made = func(*args, **{**kwargs, "device": torch.device("cpu")})
            if torch.device(wanted).type == "cpu":
                return made
            trips["tensor"] += func is torch.tensor
            return CudaTensor(made.detach()).requires_grad_(made.requires_grad)
        before, self.made.within = self.made.within, ours
        try:
            return func(*args, **kwargs)
        finally:
            self.made.within = before

    @staticmethod
    def _to(args: Any, kwargs: Any) -> Tensor:
        value, *rest = args
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for word in rest:
            if isinstance(word, Tensor):
                device, dtype = word.device, word.dtype
            elif isinstance(word, torch.dtype):
                dtype = word
            elif isinstance(word, (str, torch.device)):
                device = word
        value = value if dtype is None else value.to(dtype)
        return value if device is None else _moved(value, torch.device(device))


@contextmanager
def emulated_cuda() -> Iterator[None]:
    """Inside, one CUDA device is there."""
    trips.clear()
    cuda = torch.cuda
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    made = _Made()
    with ExitStack() as stack:
        replaced: dict[str, Any] = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: "emulated",
            "empty_cache": lambda: None,
            "synchronize": lambda *_: None,
            "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda *_: None,
            "manual_seed": lambda *_: None,
            "manual_seed_all": lambda *_: None,
            "device": lambda *_: nullcontext(),
        }
        for name, value in replaced.items():
            stack.enter_context(patch.object(cuda, name, value))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        try:
            stack.enter_context(made)
            stack.enter_context(_Calls(made))
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
