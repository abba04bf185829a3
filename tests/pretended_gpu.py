"""A pretended CUDA device on a machine without one: real values, strict devices, waits counted.

`with pretended_gpu(T4) as log:` makes torch.cuda say that there is a GPU. A tensor "on" it holds
ordinary memory, says `device == cuda:N`, computes on the CPU and refuses what a GPU refuses:
operands on two devices, NumPy, kernels that CUDA lacks. `log.waits` counts, by source line, what
makes the host wait for the device: copies back, `.item()`, `nonzero`, copies from memory that is
not pinned; `log.launches` counts operators that compute, `log.uploads` images sent and more.

C++ sees tensors of the CPU. So nothing is said about autocast's own list of operators for CUDA,
cuDNN, NCCL, memory, speed or rounding.
"""

import contextlib
import importlib
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from unittest import mock

import torch
from torch.optim.optimizer import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GIB = 1 << 30


class GPU(NamedTuple):
    """A kind of GPU."""

    name: str
    capability: tuple[int, int]
    memory: int  # bytes


T4 = GPU("Tesla T4", (7, 5), 15 * GIB)
A100 = GPU("NVIDIA A100-SXM4-40GB", (8, 0), 40 * GIB)
ARCHITECTURES = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]

WAITING = {
    f"aten::{name}" for name in (
        "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive",
        "unique_dim", "equal", "bincount", "is_nonzero",
    )
} | {"torchvision::nms"}  # fmt: skip
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
FREE = {"aten::detach", "aten::alias", "aten::empty_like", "aten::new_empty", "aten::empty_strided"}
NO_BYTES = {"aten::_upsample_bilinear2d_aa", "aten::upsample_bilinear2d"}  # on CUDA floats only
# Written in C++ with tensors made inside, which would lie on the CPU: computed as a whole.
WHOLE = {torch.quantile, torch.Tensor.quantile, torch.nanquantile, torch.Tensor.nanquantile}

_here = threading.local()  # the current device is one a thread, as in CUDA: 0 in a new thread
_log = None


@dataclass
class Log:
    """What the device was asked to do, each by the line of this project that asked."""

    waits: Counter = field(default_factory=Counter)  # (line, why)
    launches: Counter = field(default_factory=Counter)  # line
    devices: Counter = field(default_factory=Counter)  # on which they ran
    uploads: Counter = field(default_factory=Counter)  # (line, bytes)
    pinned: list = field(default_factory=list)  # storages

    def wait(self, why: str) -> None:
        self.waits[_line(), why] += 1

    def launch(self, index: int) -> None:
        self.launches[_line()] += 1
        self.devices[index] += 1

    def is_pinned(self, x: torch.Tensor) -> bool:
        return any(s.data_ptr() == x.untyped_storage().data_ptr() for s in self.pinned)


def _line() -> str:
    """Name the innermost line of helpers, or of a notebook's cell, that is being executed."""
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if "/helpers/" in name or name.startswith("<"):
            return f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def current_device() -> int:
    return getattr(_here, "device", 0)


def _index(device) -> int | None:
    """Return the number of the GPU that a device means, None for the CPU and meta."""
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type != "cuda":
        return None
    return current_device() if device.index is None else device.index


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU; `held` is its memory."""

    @staticmethod
    def __new__(cls, held, index):
        self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device="cpu",
        )  # fmt: skip
        self.held, self.index_ = held, index
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: torch.device("cuda", self.index_))
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self):
        return self.index_

    def cpu(self, memory_format=None):
        return _move(self, None)

    def cuda(self, device=None, non_blocking=False, memory_format=None):
        return _move(self, current_device() if device is None else _index(device))

    def to(self, *args, **kwargs):
        return _to(self, *args, **kwargs)

    def pin_memory(self):
        raise RuntimeError(f"cannot pin '{self.device}' only dense CPU tensors can be pinned")

    def is_pinned(self):
        return False

    def numpy(self, **_):
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self):
        return f"OnGPU({self.held!r}, {self.device})"

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol):  # saved as what torch.load(map_location="cpu") makes of it
        return self.held.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            made = OnGPU(self.held.detach().clone(), self.index_)
            if getattr(self, "_is_param", False):
                made = torch.nn.Parameter(made, self.requires_grad)
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name, kwargs = func._schema.name, dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        index = _check_devices(name, args, flat)
        _note(func, name, args, kwargs, index)
        if "device" in kwargs and kwargs["device"] is not None and kwargs["device"].type == "cuda":
            kwargs["device"] = torch.device("cpu")
        flat, spec = tree_flatten((args, kwargs))
        known = {id(x.held): x for x in flat if isinstance(x, OnGPU)}
        args_held, kwargs_held = tree_unflatten(
            [x.held if isinstance(x, OnGPU) else x for x in flat], spec
        )

        def wrap(x):
            if not isinstance(x, torch.Tensor) or x.device.type == "meta":
                return x
            return known[id(x)] if id(x) in known else OnGPU(x, index)

        # A view of an ordinary tensor is an ordinary tensor, in inference mode too.
        ordinary = func.is_view and not args[0].is_inference()
        with torch.inference_mode(False) if ordinary else contextlib.nullcontext():
            result = _compute(func, args_held, kwargs_held)
            if name == "aten::copy_" and not isinstance(args[0], OnGPU):
                return args[0]
            return tree_map(wrap, result)


def _check_devices(name: str, args: tuple, flat: list) -> int:
    """Refuse operands on two devices; returns the device of the result."""
    indices = {x.index_ for x in flat if isinstance(x, OnGPU)}
    on_cpu = any(isinstance(x, torch.Tensor) and not isinstance(x, OnGPU) and x.dim() for x in flat)
    if name in INDEXING and not isinstance(args[0], OnGPU):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    if name not in COPIES and (len(indices) > 1 or (on_cpu and name not in INDEXING)):
        found = sorted({f"cuda:{i}" for i in indices} | ({"cpu"} if on_cpu else set()))
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{found[0]} and {found[1]}! ({name})"
        )
    if name in NO_BYTES and args[0].dtype == torch.uint8:
        raise NotImplementedError(f'"{name}" not implemented for \'Byte\'')
    return next(iter(indices), current_device())


def _note(func, name: str, args: tuple, kwargs: dict, index: int) -> None:
    """Count the launch, and the wait where the host has to know or to hand over something."""
    if name in INDEXING:
        indices = [x for x in args[1] if x is not None]
        if any(not isinstance(x, OnGPU) for x in indices):
            _log.wait("index on the CPU")
        elif any(x.dtype == torch.bool for x in indices):
            _log.wait("index by a mask")
    if name in WAITING or (name == "aten::repeat_interleave" and "output_size" not in kwargs):
        _log.wait(name)
    if name == "aten::copy_":
        target, source = args[:2]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if not isinstance(target, OnGPU):
            _log.wait("copy to the CPU")
        elif not isinstance(source, OnGPU) and source.dim():
            _note_upload(source, non_blocking)
    if not func.is_view and name not in FREE:
        _log.launch(index)


def _note_upload(x: torch.Tensor, non_blocking: bool) -> None:
    if not (non_blocking and _log.is_pinned(x)):
        _log.wait("copy from memory that is not pinned" if non_blocking else "blocking copy")
    _log.uploads[_line(), x.numel() * x.element_size()] += 1


def _compute(func, args: tuple, kwargs: dict):
    """Run an operator on the CPU; in float32 where the CPU has no kernel for float16."""
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if "not implemented for 'Half'" not in text and "could not create a primitive" not in text:
            raise

    def converted(x, old, new):
        return x.to(new) if isinstance(x, torch.Tensor) and x.dtype == old else x

    wide = tree_map(lambda x: converted(x, torch.float16, torch.float32), (args, kwargs))
    result = func(*wide[0], **wide[1])
    return tree_map(lambda x: converted(x, torch.float32, torch.float16), result)


class _Moved(torch.autograd.Function):
    """Copy a tensor to a device, its gradient back."""

    @staticmethod
    def forward(ctx, x, index):
        ctx.index = getattr(x, "index_", None)
        held = getattr(x, "held", x).detach().clone()
        return held if index is None else OnGPU(held, index)

    @staticmethod
    def backward(ctx, gradient):
        held = getattr(gradient, "held", gradient).detach().clone()
        return (held if ctx.index is None else OnGPU(held, ctx.index)), None


def _move(x, index, non_blocking=False):
    here = getattr(x, "index_", None)
    if index == here:
        return x
    if index is None:
        _log.wait("copy to the CPU")
    elif here is None:
        _note_upload(x, non_blocking)
    return _Moved.apply(x, index)


def _to(x, *args, device=None, dtype=None, non_blocking=False, copy=False, memory_format=None):
    """Do what Tensor.to does; the place of the positional arguments depends on their types."""
    args = list(args)
    if args and isinstance(args[0], torch.Tensor):
        other = args.pop(0)
        device, dtype = other.device, other.dtype
    elif args and not isinstance(args[0], torch.dtype):
        device = args.pop(0)
    if args and (args[0] is None or isinstance(args[0], torch.dtype)):
        dtype = args.pop(0)
    non_blocking, copy = [*args, *(non_blocking, copy)[len(args) :]][:2]
    if device is not None and torch.device(device).type == "meta":
        with torch._C.DisableTorchFunction():
            return getattr(x, "held", x).to("meta")
    here = getattr(x, "index_", None)
    made = _move(x, here if device is None else _index(device), non_blocking)
    with torch._C.DisableTorchFunction():
        if memory_format not in (None, torch.preserve_format):
            made = torch.Tensor.to(made, dtype or made.dtype, memory_format=memory_format)
        elif dtype is not None:
            made = torch.Tensor.to(made, dtype)
        return made.clone() if copy and made is x else made


class _Pretence(TorchFunctionMode):
    """Bring to the pretended GPU what plain tensors and factories are asked to bring there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if func in WHOLE and isinstance(first, OnGPU):
            return OnGPU(func(first.held.detach(), *args[1:], **kwargs), first.index_)
        if isinstance(first, torch.Tensor) and not isinstance(first, OnGPU):
            if func is torch.Tensor.to:
                return self._plain_to(func, args, kwargs)
            if func is torch.Tensor.cuda:
                device = kwargs.pop("device", None) if len(args) < 2 else args[1]
                return _to(first, "cuda" if device is None else device, **kwargs)
            if func is torch.Tensor.pin_memory:
                return _pin(first.clone())
            if func is torch.Tensor.is_pinned:
                return _log.is_pinned(first)
        if kwargs.get("pin_memory"):
            return _pin(func(*args, **{**kwargs, "pin_memory": False}))
        if kwargs.get("device") is not None and func is not torch.Tensor.to:
            return self._make(func, args, kwargs)
        return func(*args, **kwargs)

    def _plain_to(self, func, args, kwargs):
        wanted = kwargs.get("device", args[1] if len(args) > 1 else None)
        wanted = wanted.device if isinstance(wanted, torch.Tensor) else wanted
        if isinstance(wanted, str | int | torch.device) and _index(wanted) is not None:
            return _to(*args, **kwargs)
        return func(*args, **kwargs)

    def _make(self, func, args, kwargs):
        """Run a factory with a `device`, such as torch.zeros, torch.tensor or Tensor.new_zeros."""
        index, rest = _index(kwargs["device"]), {k: v for k, v in kwargs.items() if k != "device"}
        held = [x for x in args if isinstance(x, OnGPU)]
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and (held or index is not None):
            if not held:
                made = func(*args, **rest)
                return _move(made.detach(), index).requires_grad_(made.requires_grad)
            return _to(args[0], torch.device(kwargs["device"]), kwargs.get("dtype"))
        if held:  # zeros_like, new_zeros: the tensor's own kind
            return func(*args, **rest) if index is not None else func(*args, **rest).cpu()
        if index is None:
            return func(*args, **kwargs)
        _log.launch(index)
        made = func(*args, **rest)
        return OnGPU(made.detach(), index).requires_grad_(made.requires_grad)


def _pin(x: torch.Tensor) -> torch.Tensor:
    _log.pinned.append(x.untyped_storage())
    return x


def _group(lists, with_indices=False):
    """Group an optimizer's tensors; they say "cuda" in Python alone."""
    groups = torch._C._group_tensors_by_device_and_dtype(lists, with_indices)
    if not any(isinstance(x, OnGPU) for x in lists[0]):
        return groups
    return {(lists[0][0].device, dtype): found for (_, dtype), found in groups.items()}


@contextlib.contextmanager
def pretended_gpu(gpu=T4, count=1, free=None):
    """Pretend to have `count` GPUs of a kind, with `free` bytes of memory; yields the Log."""
    global _log
    importlib.import_module("torch._dynamo")  # looks at torch.cuda once, when it is imported
    _log = Log()
    _here.device = 0
    free = gpu.memory if free is None else free
    autocast, run = torch.autocast.__init__, threading.Thread.run

    def cpu_autocast(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.float16
            cache_enabled = False  # it would hold tensors of the CPU
        autocast(self, device_type, dtype, enabled, cache_enabled)

    def run_thread(self):
        with _Pretence():
            run(self)

    def set_device(device):
        _here.device = _index(device)

    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": current_device,
        "set_device": set_device,
        "get_device_capability": lambda device=None: gpu.capability,
        "get_device_name": lambda device=None: gpu.name,
        "get_arch_list": lambda: ARCHITECTURES,
        "mem_get_info": lambda device=None: (free, gpu.memory),
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "synchronize": lambda device=None: _log.wait("synchronize"),
        "empty_cache": lambda: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.random.default_generator.get_state(),
        "set_rng_state": lambda state, device="cuda": None,
    }
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        patch = mock.patch.object
        stack.enter_context(patch(torch.autocast, "__init__", cpu_autocast))
        stack.enter_context(patch(threading.Thread, "run", run_thread))
        stack.enter_context(
            patch(Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(_group))
        )
        for check in ("_accelerator", "_cuda"):
            name = f"{check}_graph_capture_health_check"
            if hasattr(Optimizer, name):
                stack.enter_context(patch(Optimizer, name, lambda self: None))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        stack.enter_context(_Pretence())
        yield _log
