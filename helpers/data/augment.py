"""Augmentation of training batches, drawn for each image separately, and normalisation.

Works on uint8 batches (N, 3, S, S) wherever they lie, CPU or GPU, without a loader process.
"""

import math

import torch
from torch.nn import functional as F


def normalize(images: torch.Tensor, mean, std, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turn uint8 images (N, 3, S, S) into (pixel / 255 - mean) / std, channels last."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) * 255 for v in (mean, std))
    images = images.contiguous(memory_format=torch.channels_last)
    return torch.addcmul(-mean / std, images.to(torch.float32), 1 / std).to(dtype)


def augment(
    images: torch.Tensor, augmentations: list[tuple[str, float]], generator: torch.Generator
) -> torch.Tensor:
    """Apply the list of (name, strength) to uint8 images (N, 3, S, S), each drawn per image.

    `helpers.config.AUGMENTATIONS` says what each strength means; `generator` lives on the CPU and
    decides everything, so the same generator state gives the same images.
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
        chosen = chosen.nonzero()[:, 0].to(images.device)
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
    result = torch.empty_like(images)
    for image, target, (down, right) in zip(images, result, offsets.tolist(), strict=True):
        rows, columns = _mirrored(size, down), _mirrored(size, right)
        for row_from, row_to, row_flip in rows:
            for column_from, column_to, column_flip in columns:
                part = image[:, row_from, column_from]
                flips = [1] * row_flip + [2] * column_flip
                target[:, row_to, column_to] = part.flip(flips) if flips else part
    return result


def _mirrored(size: int, offset: int) -> list[tuple[slice, slice, bool]]:
    """Slices (from, to, flipped) that read `size` positions from `offset` on, mirrored outside."""
    inside = size - abs(offset)
    if offset == 0:
        return [(slice(0, size), slice(0, size), False)]
    if offset > 0:
        return [
            (slice(offset, size), slice(0, inside), False),
            (slice(size - 1 - offset, size - 1), slice(inside, size), True),
        ]
    return [
        (slice(0, inside), slice(-offset, size), False),
        (slice(1, 1 - offset), slice(0, -offset), True),
    ]


def _random_resized_crop(
    images: torch.Tensor, smallest_area: float, generator: torch.Generator
) -> torch.Tensor:
    """Cut a box of random area and aspect ratio (3/4 to 4/3) and resize it to the full size."""
    count, size = len(images), images.shape[-1]
    area = _uniform(count, smallest_area, 1, generator) * size * size
    ratio = _uniform(count, math.log(3 / 4), math.log(4 / 3), generator).exp()
    heights = (area / ratio).sqrt().round().clamp(1, size)
    widths = (area * ratio).sqrt().round().clamp(1, size)
    tops = (_uniform(count, 0, 1, generator) * (size - heights + 1)).floor()
    lefts = (_uniform(count, 0, 1, generator) * (size - widths + 1)).floor()
    boxes = torch.stack([tops, lefts, heights, widths], 1).int().tolist()
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
    grid = F.affine_grid(matrix.to(images.device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def _color_jitter(
    images: torch.Tensor, strength: float, generator: torch.Generator
) -> torch.Tensor:
    """Change brightness, then contrast, then saturation, each by a factor 1 +- strength."""
    factors = _uniform(3 * len(images), 1 - strength, 1 + strength, generator)
    brightness, contrast, saturation = factors.to(images.device).view(3, -1, 1, 1, 1)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    images = images.float() * brightness
    gray_mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    images = torch.lerp(gray_mean, images, contrast)
    images = torch.lerp((images * weights).sum(1, keepdim=True), images, saturation)
    return images.round().clamp(0, 255).to(torch.uint8)


def _random_erasing(
    images: torch.Tensor, probability: float, generator: torch.Generator
) -> torch.Tensor:
    """Grey out a rectangle of 2 to 25 % of the area in some images (Zhong et al. 2017)."""
    count, size = len(images), images.shape[-1]
    chosen = _uniform(count, 0, 1, generator) < probability
    area = _uniform(count, 0.02, 0.25, generator) * size * size
    ratio = _uniform(count, math.log(0.3), math.log(1 / 0.3), generator).exp()
    heights = (area / ratio).sqrt().round().clamp(1, size)
    widths = (area * ratio).sqrt().round().clamp(1, size)
    tops = (_uniform(count, 0, 1, generator) * (size - heights + 1)).floor()
    lefts = (_uniform(count, 0, 1, generator) * (size - widths + 1)).floor()
    boxes = torch.stack([tops, lefts, heights, widths], 1).int().tolist()
    images = images.clone()
    for image, erased, (top, left, height, width) in zip(images, chosen, boxes, strict=True):
        if erased:
            image[:, top : top + height, left : left + width] = 128
    return images
