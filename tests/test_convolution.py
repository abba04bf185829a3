"""A convolution written out is PyTorch's, and receptive fields are what gradients reach."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch.nn import functional as F

from helpers.count import convolution
from helpers.models import build
from helpers.runs.config import Config


@given(side=st.integers(3, 8), size=st.integers(1, 3), seed=st.integers(0, 9))
def test_matrix_product_is_pytorchs_convolution(side, size, seed):
    rng = np.random.default_rng(seed)
    image, kernel = rng.normal(size=(side, side)), rng.normal(size=(size, size))
    matrix = convolution.as_matrix(kernel, side)
    expected = F.conv2d(*(torch.from_numpy(x)[None, None] for x in (image, kernel)))[0, 0]
    np.testing.assert_allclose(matrix @ image.ravel(), expected.numpy().ravel(), atol=1e-12)
    assert np.count_nonzero(matrix) == (side - size + 1) ** 2 * size**2


def test_receptive_fields_are_the_pixels_that_a_gradient_reaches():
    kernels = [3, 5, 3]
    config = Config(image_size=128, filters=2, kernel_size=[*kernels, 3, 3], activation="tanh")
    model = build(config, 2).eval()
    for block in model.blocks:
        block.pool = torch.nn.AvgPool2d(2)  # the largest of four hands its gradient to one alone
    for count, field in enumerate(convolution.receptive_fields(kernels), start=1):
        image = torch.randn(1, 3, 128, 128, requires_grad=True)
        model.blocks[:count](image)[0, :, 4, 4].sum().backward()
        reached = image.grad.abs().sum((0, 1, 2)).nonzero()
        assert int(reached.max() - reached.min()) + 1 == field


def test_five_blocks_of_three_see_94_pixels():
    assert convolution.receptive_fields([3] * 5) == [4, 10, 22, 46, 94]


def test_figures():
    image, kernel = np.arange(25.0).reshape(5, 5), np.ones((3, 3))
    output = np.arange(9.0).reshape(3, 3)
    figures = [
        convolution.draw_convolution(image, kernel, output),
        convolution.draw_receptive_fields(np.zeros((64, 64, 3), np.uint8), [3] * 5),
    ]
    for figure in figures:
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()
