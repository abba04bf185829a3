"""Batch norm, 2x2 max pooling and ReLU of a block in one pass over memory, for training on a CPU.

On a CPU these three take most of a training step, and nearly all of that time is reading and
writing feature maps. Max pooling and an increasing function commute, so that only the pooled maps
need to be normalised; statistics and maxima are gathered in the same pass, and the backward pass
writes the full map's gradient once. Same function and same gradients as the three layers.
"""

import os
from pathlib import Path

import numpy as np
import torch
from numba import get_num_threads, njit, prange, set_num_threads, types
from numba.extending import overload
from torch import distributed, nn

# Where neither folder can be written, numba would stop; it then compiles at every start.
CACHE = any(os.access(folder, os.W_OK) for folder in (Path(__file__).parent, Path.home()))
FAST = {"parallel": True, "fastmath": {"contract"}, "cache": CACHE}
ONE, ZERO = np.float32(1), np.float32(0)


def norm_pool(
    maps: torch.Tensor, norm: nn.BatchNorm2d, slope: float, pool_first: bool = False
) -> torch.Tensor:
    """Return the activation of the 2x2 max pooling of `norm(maps)`, as `norm` in training does.

    `maps` (N, C, H, W) in float32 or bfloat16, in main memory; the result is (N, C, H/2, W/2).
    With `pool_first` it is the activation of `norm(max pooling of maps)`: other statistics.
    The activation is x for x > 0, else `slope` * x: 0 for ReLU, 1 for none. Updates the running
    statistics. Where several of four values are the largest, the first has the gradient.
    """
    threads = min(torch.get_num_threads(), _AVAILABLE)
    if get_num_threads() != threads:
        set_num_threads(threads)
    maps = maps.contiguous(memory_format=torch.channels_last)
    pooled, mean, unbiased = _NormPool.apply(
        maps, norm.weight, norm.bias, norm.eps, slope, pool_first
    )
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(unbiased, norm.momentum)
    return pooled


class _NormPool(torch.autograd.Function):
    """The formulas of Ioffe and Szegedy 2015, with the gradient of the pooled maps alone."""

    @staticmethod
    def forward(ctx, maps, weight, bias, eps, slope, pool_first):
        images, channels, height, width = maps.shape
        largest = torch.empty(
            (images, channels, height // 2, width // 2),
            dtype=maps.dtype,
            memory_format=torch.channels_last,
        )
        corner = torch.empty_like(largest, dtype=torch.uint8)
        result = torch.empty_like(largest)
        sums = np.zeros((images, 2, channels))
        # The largest of w * x + b is found at the smallest x where w is negative.
        sign = torch.where((weight.detach() < 0) & (not pool_first), -1.0, 1.0)
        shift = maps[0, :, 0, 0].float()  # near the mean, so that the squares do not cancel
        small = _array(largest), _array(corner)
        _gather(_array(maps), sign.numpy(), shift.numpy(), pool_first, *small, sums)
        count = (largest if pool_first else maps).numel() // channels
        first, second = torch.from_numpy(sums.sum(0))
        shift = shift.double()
        second = second + 2 * shift * first + count * shift**2
        totals = torch.cat([first + count * shift, second, torch.tensor([count])])
        totals = _sum_over_processes(totals)
        count = totals[-1].item()
        mean, square = (totals[:-1] / count).view(2, channels)
        variance = square - mean * mean
        mean, variance, unbiased = (
            value.float() for value in (mean, variance, variance * count / max(count - 1, 1))
        )
        deviation = torch.rsqrt(variance + eps)
        scale = weight.detach() * deviation
        offset = bias.detach() - mean * scale
        slope = np.float32(slope)
        _activate(_array(largest), scale.numpy(), offset.numpy(), slope, _array(result))
        ctx.save_for_backward(maps, largest, corner, scale, offset, mean, deviation)
        ctx.slope, ctx.count, ctx.pool_first = slope, count, pool_first
        ctx.mark_non_differentiable(mean, unbiased)
        return result, mean, unbiased

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, *_):
        maps, largest, corner, scale, offset, mean, deviation = ctx.saved_tensors
        images, channels, height, width = maps.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        small = _array(largest), _array(gradient), scale.numpy(), offset.numpy(), ctx.slope
        sums = np.zeros((images, 2, channels))
        _reduce(*small, mean.numpy(), deviation.numpy(), sums)
        own = torch.from_numpy(sums.sum(0))
        bias_gradient, weight_gradient = _sum_over_processes(own).float()
        slant = -scale * deviation * weight_gradient / ctx.count
        level = -scale * bias_gradient / ctx.count - slant * mean
        result = torch.empty_like(maps)
        line = slant.numpy(), level.numpy(), ctx.pool_first
        _scatter(_array(maps), *small, _array(corner), *line, _array(result))
        return result, own[1].float(), own[0].float(), None, None, None


def _sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over the processes of one training, so that all normalise alike."""
    if distributed.is_initialized():
        tensor = tensor.clone()  # the part of this process is still needed
        distributed.all_reduce(tensor)
    return tensor


def _array(tensor: torch.Tensor) -> np.ndarray:
    """View a channels-last tensor as an array (N, H, W, C); bfloat16 as the uint16 of its bits."""
    tensor = tensor.detach().permute(0, 2, 3, 1)
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def load(value):
    """Read a stored value as float32; a bfloat16 is the upper half of a float32."""


def store(array, index, value):
    """Write a float32 into an array of float32, or of bfloat16 bits rounded to even."""


@overload(load)
def _load(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


@overload(store)
def _store(array, index, value):
    if array.dtype == types.uint16:

        def store_bfloat16(array, index, value):
            bits = np.float32(value).view(np.uint32)
            even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            array[index] = np.uint16((bits + even) >> np.uint32(16))

        return store_bfloat16

    def store_float32(array, index, value):
        array[index] = value

    return store_float32


@njit(**FAST)
def _gather(maps, sign, shift, pool_first, largest, corner, sums):
    """Find each 2x2 window's largest `sign` * value and its corner; sum values and squares."""
    images, height, width, channels = maps.shape
    rows, columns = height // 2, width // 2
    for n in prange(images):
        first, second = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        for i in range(rows):
            for j in range(columns):
                a, b = maps[n, 2 * i, 2 * j], maps[n, 2 * i, 2 * j + 1]
                c, d = maps[n, 2 * i + 1, 2 * j], maps[n, 2 * i + 1, 2 * j + 1]
                best, where = largest[n, i, j], corner[n, i, j]
                for k in range(channels):
                    va, vb, vc, vd = load(a[k]), load(b[k]), load(c[k]), load(d[k])
                    top, at = va * sign[k], np.uint8(0)
                    if vb * sign[k] > top:
                        top, at = vb * sign[k], np.uint8(1)
                    if vc * sign[k] > top:
                        top, at = vc * sign[k], np.uint8(2)
                    if vd * sign[k] > top:
                        top, at = vd * sign[k], np.uint8(3)
                    store(best, k, top * sign[k])
                    where[k] = at
                    if pool_first:
                        sa, sb, sc, sd = top - shift[k], ZERO, ZERO, ZERO
                    else:
                        sa, sb = va - shift[k], vb - shift[k]
                        sc, sd = vc - shift[k], vd - shift[k]
                    first[k] += (sa + sb) + (sc + sd)
                    second[k] += (sa * sa + sb * sb) + (sc * sc + sd * sd)
            for k in range(channels):  # row by row in float64, so that rounding does not add up
                sums[n, 0, k] += first[k]
                sums[n, 1, k] += second[k]
                first[k] = second[k] = ZERO
        for i in range(0 if pool_first else height):  # an odd last row or column, in no window
            for j in range(2 * columns if i < 2 * rows else 0, width):
                for k in range(channels):
                    value = load(maps[n, i, j, k]) - shift[k]
                    sums[n, 0, k] += value
                    sums[n, 1, k] += value * value


@njit(**FAST)
def _activate(largest, scale, offset, slope, result):
    """Normalise and activate the pooled maps."""
    images, rows, columns, channels = largest.shape
    for n in prange(images):
        for i in range(rows):
            for j in range(columns):
                values, out = largest[n, i, j], result[n, i, j]
                for k in range(channels):
                    value = load(values[k]) * scale[k] + offset[k]
                    store(out, k, value * (slope if value <= ZERO else ONE))


@njit(**FAST)
def _reduce(largest, gradient, scale, offset, slope, mean, deviation, sums):
    """Sum the gradients of bias and weight over the pooled maps."""
    images, rows, columns, channels = largest.shape
    for n in prange(images):
        first, second = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
        for i in range(rows):
            for j in range(columns):
                values, upper = largest[n, i, j], gradient[n, i, j]
                for k in range(channels):
                    value = load(values[k])
                    active = value * scale[k] + offset[k] > ZERO
                    flow = load(upper[k]) * (ONE if active else slope)
                    first[k] += flow
                    second[k] += flow * ((value - mean[k]) * deviation[k])
            for k in range(channels):
                sums[n, 0, k] += first[k]
                sums[n, 1, k] += second[k]
                first[k] = second[k] = ZERO


@njit(**FAST)
def _scatter(
    maps, largest, gradient, scale, offset, slope, corner, slant, level, pool_first, result
):
    """Write the maps' gradient: the flow at each window's corner, and `level` + `slant` * value.

    The second part belongs to every value that the statistics saw.
    """
    images, height, width, channels = maps.shape
    rows, columns = height // 2, width // 2
    for n in prange(images):
        flow = np.empty(channels, np.float32)
        for i in range(rows):
            for j in range(columns):
                values, upper, where = largest[n, i, j], gradient[n, i, j], corner[n, i, j]
                for k in range(channels):
                    value = load(values[k])
                    active = value * scale[k] + offset[k] > ZERO
                    flow[k] = load(upper[k]) * scale[k] * (ONE if active else slope)
                    if pool_first:
                        flow[k] += value * slant[k] + level[k]
                for at in range(4):
                    x, y = 2 * i + at // 2, 2 * j + at % 2
                    seen, out = maps[n, x, y], result[n, x, y]
                    if pool_first:
                        for k in range(channels):
                            store(out, k, flow[k] if where[k] == at else ZERO)
                    else:
                        for k in range(channels):
                            here = flow[k] if where[k] == at else ZERO
                            store(out, k, load(seen[k]) * slant[k] + level[k] + here)
        for i in range(height):
            for j in range(2 * columns if i < 2 * rows else 0, width):
                for k in range(channels):
                    line = load(maps[n, i, j, k]) * slant[k] + level[k]
                    store(result[n, i, j], k, ZERO if pool_first else line)


# Numba starts its threads here, and sets OpenMP's number of threads, which is PyTorch's, too.
_threads = torch.get_num_threads()
_AVAILABLE = get_num_threads()
torch.set_num_threads(_threads)
