"""Augmentation of training batches, drawn for each image separately, and normalisation.

Works on uint8 batches (N, 3, S, S) wherever they lie, CPU or GPU, without a loader process.
"""

import math

import torch
from torch.nn import functional as F

from helpers.data.images import send


def normalize(images: torch.Tensor, mean, std, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turn uint8 images (N, 3, S, S) into (pixel / 255 - mean) / std, channels last."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (mean, std))
    offset, scale = send(torch.stack([-mean / std, 1 / std]), images.device)
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.addcmul(offset, images.to(torch.float32), scale).to(dtype)


def augment(
    images: torch.Tensor, augmentations: list[tuple[str, float]], generator: torch.Generator
) -> torch.Tensor:
    """Apply the list of (name, strength) to uint8 images (N, 3, S, S), each drawn per image.

    `helpers.runs.config.AUGMENTATIONS` says what each strength means; `generator` lives on the
    CPU and decides everything, so the same generator state gives the same images.
    Rotation, shift and zoom are composed into one resampling.
    """
    strengths = dict(augmentations)
    if "random_resized_crop" in strengths:
        images = _random_resized_crop(images, strengths["random_resized_crop"], generator)
    if "random_crop" in strengths:
        images = _random_crop(images, int(strengths["random_crop"]), generator)
    if strengths.keys() & {"rotation", "shift", "zoom"}:
        images = _affine(images, strengths, generator)
    if "horizontal_flip" in strengths:
        chosen = _uniform(len(images), 0, 1, generator) < strengths["horizontal_flip"]
        chosen = send(chosen.nonzero()[:, 0], images.device)
        images = images.index_copy(0, chosen, images[chosen].flip(3))
    if "color_jitter" in strengths:
        images = _color_jitter(images, strengths["color_jitter"], generator)
    if "random_erasing" in strengths:
        images = _random_erasing(images, strengths["random_erasing"], generator)
    return images


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize uint8 images (N, 3, H, W) to `size` x `size` pixels, with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    pixels = images.float() if images.is_cuda else images  # no uint8 kernel on the GPU
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.round().to(torch.uint8) if images.is_cuda else pixels


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _random_crop(images: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to `padding` pixels each way, mirroring what lies beyond the border."""
    size = images.shape[-1]
    padding = min(padding, size - 1)
    offsets = torch.randint(-padding, padding + 1, (len(images), 2), generator=generator)
    pixels = images.permute(0, 2, 3, 1)
    for dim in (1, 2):
        before, after = pixels.narrow(dim, 1, padding), pixels.narrow(dim, -1 - padding, padding)
        pixels = torch.cat([before.flip(dim), pixels, after.flip(dim)], dim)
    corners = (offsets + padding).tolist()
    cut = [
        image[top : top + size, left : left + size]
        for image, (top, left) in zip(pixels, corners, strict=True)
    ]
    return torch.stack(cut).permute(0, 3, 1, 2)


def _boxes(
    images: torch.Tensor, areas: tuple, ratios: tuple, generator: torch.Generator
) -> torch.Tensor:
    """Draw a box in each image: top, left, height, width in pixels, int (N, 4).

    `areas` (shares of the image) and `ratios` (width to height) are the smallest and the largest.
    """
    count, size = len(images), images.shape[-1]
    area = _uniform(count, *areas, generator) * size * size
    ratio = _uniform(count, *map(math.log, ratios), generator).exp()
    share = area / size**2  # a larger box cannot be as oblong
    ratio = torch.minimum(torch.maximum(ratio, share), 1 / share)
    sides = [square.sqrt().round().clamp(1, size) for square in (area / ratio, area * ratio)]
    corners = [(_uniform(count, 0, 1, generator) * (size - side + 1)).floor() for side in sides]
    return torch.stack(corners + sides, 1).int()


def _random_resized_crop(
    images: torch.Tensor, smallest_area: float, generator: torch.Generator
) -> torch.Tensor:
    """Cut a box of random area and aspect ratio (3/4 to 4/3) and resize it to the full size."""
    size = images.shape[-1]
    boxes = _boxes(images, (smallest_area, 1), (3 / 4, 4 / 3), generator).tolist()
    result = torch.empty_like(images)
    for image, target, (top, left, height, width) in zip(images, result, boxes, strict=True):
        target.copy_(resize(image[None, :, top : top + height, left : left + width], size)[0])
    return result


def _affine(images: torch.Tensor, strengths: dict, generator: torch.Generator) -> torch.Tensor:
    """Rotate, zoom and shift in one bilinear resampling, mirroring what lies beyond the border."""
    count = len(images)
    limit = math.radians(strengths.get("rotation", 0))
    angle = _uniform(count, -limit, limit, generator)
    zoom = strengths.get("zoom", 0)
    scale = _uniform(count, 1 - zoom, 1 + zoom, generator)
    shift = 2 * strengths.get("shift", 0)  # grid coordinates go from -1 to 1
    right, down = (_uniform(count, -shift, shift, generator) for _ in range(2))
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cosine, -sine, right, sine, cosine, down], 1).view(count, 2, 3)
    grid = F.affine_grid(send(matrix, images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def _color_jitter(
    images: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """Change brightness, then contrast, then saturation, each by a factor 1 +- strength."""
    factors = _uniform(3 * len(images), 1 - strength, 1 + strength, generator)
    brightness, contrast, saturation = send(factors, images.device).view(3, -1, 1, 1, 1)
    weights = send(torch.tensor([0.299, 0.587, 0.114]), images.device).view(1, 3, 1, 1)
    images = images.float() * brightness
    gray_mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(gray_mean, images, contrast)
    images = torch.lerp((images * weights).sum(1, keepdim=True), images, saturation)
    return images.round().clamp(0, 255).to(torch.uint8)


def _random_erasing(
    images: torch.Tensor, probability: float, generator: torch.Generator
) -> torch.Tensor:
    """Grey out a rectangle of 2 to 25 % of the area in some images (Zhong et al. 2017)."""
    chosen = _uniform(len(images), 0, 1, generator) < probability
    tops, lefts, heights, widths = _boxes(images, (0.02, 0.25), (0.3, 1 / 0.3), generator).T
    at = torch.arange(images.shape[-1])
    rows, columns = (
        chosen[:, None] & (at >= first[:, None]) & (at < (first + length)[:, None])
        for first, length in ((tops, heights), (lefts, widths))
    )
    rows, columns = send(torch.stack([rows, columns]), images.device)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 128)
