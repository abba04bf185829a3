"""The fused layers compute what PyTorch's three layers compute, forward and backward."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import ROOT, models
from helpers.models.norm_pool import norm_pool
from helpers.runs.config import Config


def pair(channels):
    """Two equal batch norms with weights of both signs."""
    norms = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    with torch.no_grad():
        norms[0].weight.normal_()
        norms[0].bias.normal_()
        norms[1].load_state_dict(norms[0].state_dict())
    return norms


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(2, 4), st.integers(1, 17), st.integers(2, 9), st.integers(2, 9)),
    slope=st.sampled_from([0.0, 0.01, 1.0]),
    shift=st.sampled_from([0.0, 30.0, -300.0]),
    pool_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_float32_equals_the_three_layers(shape, slope, shift, pool_first, seed):
    torch.manual_seed(seed)
    maps = (torch.randn(shape) + shift).requires_grad_()
    norm, other = pair(shape[1])
    other.double()
    precise = maps.double()  # float64 is the truth
    pooled = other(F.max_pool2d(precise, 2)) if pool_first else F.max_pool2d(other(precise), 2)
    expected = F.leaky_relu(pooled, slope)
    upper = torch.randn(expected.shape)
    found = norm_pool(maps, norm, slope, pool_first)
    gradients = torch.autograd.grad(found, [maps, norm.weight, norm.bias], upper)
    truth = torch.autograd.grad(expected, [maps, other.weight, other.bias], upper.double())
    tolerance = 2e-4 if shift else 2e-5
    assert torch.allclose(found.double(), expected, atol=tolerance * 10, rtol=tolerance)
    for gradient, true in zip(gradients, truth, strict=True):
        scale = true.abs().max().item() + upper.abs().sum().item() / maps.numel()
        assert (gradient - true).abs().max().item() <= 50 * tolerance * scale
    assert torch.allclose(norm.running_mean.double(), other.running_mean, atol=1e-4)
    assert torch.allclose(norm.running_var.double(), other.running_var, rtol=1e-3, atol=1e-4)
    assert norm.num_batches_tracked == 1


def test_bfloat16_equals_the_three_layers_bit_for_bit_forward():
    torch.manual_seed(0)
    maps = torch.randn(6, 24, 14, 14).bfloat16().contiguous(memory_format=torch.channels_last)
    norm, other = pair(24)
    expected = F.relu(F.max_pool2d(other(maps), 2))
    found = norm_pool(maps, norm, 0.0)
    assert found.dtype == torch.bfloat16
    assert (found != expected).float().mean() < 1e-3  # a last bit, where float32 sums differ
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7)


def test_a_value_that_is_not_finite_is_not_hidden():
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 1, 2, 2] = torch.nan
    found = norm_pool(maps, nn.BatchNorm2d(3), 0.0)
    assert found[:, 1].isnan().any() and found[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "tanh", "silu"])
@pytest.mark.parametrize("change", [{}, {"norm_after_pool": True}, {"dropout_after": "blocks"}])
def test_a_network_learns_the_same_with_and_without(activation, change):
    """One training step: same logits, same gradients, same running statistics."""
    config = Config(image_size=32, filters=6, dense=8, activation=activation, **change)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])
    images = images.contiguous(memory_format=torch.channels_last)

    def step(fuse):
        model = models.build(config, 3).to(memory_format=torch.channels_last)
        for block in model.blocks:
            block.fuse = fuse
        torch.manual_seed(1)
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        return logits, [p.grad for p in model.parameters()], list(model.buffers())

    logits, gradients, buffers = step(fuse=True)
    plain = step(fuse=False)
    assert torch.allclose(logits, plain[0], atol=1e-5)
    for one, other in zip(gradients + buffers, plain[1] + plain[2], strict=True):
        assert torch.allclose(one.float(), other.float(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("first", "threads"), [("torch", "1"), ("torchvision", "2")])
def test_the_number_of_threads_stays_what_the_user_has_set(first, threads):
    """Numba's start would raise it for PyTorch, too: two processes would fight for the cores.

    Nor is anything said at exit: see test_importing_says_nothing_even_at_exit.
    """
    work = f"""
import {first}
from helpers.train import fine_tune
import torch
from torch import nn
from helpers.models.norm_pool import norm_pool
maps = torch.randn(4, 8, 8, 8, requires_grad=True)
norm_pool(maps, nn.BatchNorm2d(8), 0.0).sum().backward()
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, env=environment, text=True,
                          capture_output=True, check=True, timeout=120)  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{threads}\n", "")
