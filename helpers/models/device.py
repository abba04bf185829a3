"""The machine that a run uses: device, number format, memory, versions."""

import ctypes
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from helpers import ROOT
from helpers.runs.config import Config
from helpers.runs.text import say_once


def choose_device() -> torch.device:
    """Return this process's current GPU if this PyTorch has kernels for it, else the CPU.

    It has a number: threads each have a current GPU of their own, which is the first one.
    An old GPU (Kaggle's P100) says it is available and fails at the first kernel, hence the check.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    major, minor = torch.cuda.get_device_capability()
    names = [arch for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]  # not AMD's
    built_for = [int(arch[3:]) for arch in names if arch[3:].isdigit()]
    if built_for and 10 * major + minor < min(built_for):
        say_once(
            f"{torch.cuda.get_device_name()} is too old for this PyTorch (built for sm_"
            f"{min(built_for)} and newer): training on the CPU; choose a T4 if you can"
        )
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Return the number format of activations: `config.precision`, or what the hardware does fast.

    GPU: bfloat16 from compute capability 8.0 on, float16 before (a T4 only emulates bfloat16).
    CPU: bfloat16 where Linux names AVX512's instructions for it, else float32.
    """
    if config.precision != "auto":
        return getattr(torch, config.precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    return torch.bfloat16 if "avx512_bf16" in _processor() else torch.float32


def batch_size_without_gradients(config: Config, device: torch.device) -> int:
    """Return how many images at once are fastest where a network is only applied.

    On a CPU at most 32: what a layer hands to the next then stays in the cache, and 256 images at
    once take up to 1.7 times as long. On a GPU four training batches, which need no more memory,
    but no more than 64 images unless a training batch has more.
    """
    return 32 if device.type == "cpu" else max(config.batch_size, min(4 * config.batch_size, 64))


def _processor() -> str:
    """Return Linux's description of the processor's cores; nothing on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


@contextmanager
def mixed_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute a training step's forward in a number format, by PyTorch's autocast.

    On a CPU, depthwise convolutions stay in float32: their gradients have no fast kernels in 16
    bits there, and a step of EfficientNet-Lite0 would take 1.9 times as long.
    """
    mixed = dtype != torch.float32
    depthwise = _DepthwiseInFloat32() if mixed and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype, mixed), depthwise:
        yield


class _DepthwiseInFloat32(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d:
            images, weight = args[:2]
            if weight.shape[1] == 1 < images.shape[1]:
                with torch.autocast("cpu", enabled=False):
                    return function(images.float(), *args[1:], **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def keep_memory() -> None:
    """Make malloc keep freed memory for the next step instead of returning it to the kernel.

    Otherwise every large activation is mapped, page-faulted and unmapped again at every step,
    which takes more than half of a training step on a CPU. glibc only; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def environment() -> dict:
    """Describe hardware, versions and the code's commit, for a run's `environment.json`."""
    commit = ""
    with suppress(FileNotFoundError):  # git itself
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        commit = result.stdout.strip()
    device = choose_device()
    model_name = re.search(r"model name\s*: (.*)", _processor())
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "processor": model_name[1] if model_name else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {
            name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "pydantic")
        },
        "commit": commit or "unknown",
    }
