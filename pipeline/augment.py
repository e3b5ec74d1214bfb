"""Deterministic crop, flip, colour jitter and blur of one sample.

A view is drawn from (seed, epoch, key, window) alone, so decoding a sample again gives the same pixels, and
every frame of a sample gets the same one: a crop or a colour that jumps between clips would look like motion.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from .order import stable_uniforms

LUMA = (0.299, 0.587, 0.114)  # BT.601, the matrix that the decoder uses as well
MOST_ASPECT = 4 / 3  # width / height of a zoomed part, or its inverse, as in torchvision's RandomResizedCrop
LEAST_BLUR = 0.1  # pixels; a standard deviation below it changes nothing
FRAMES_IN_FLOAT = 16  # at a time, for each of several decoders


@dataclass(frozen=True)
class Colour:
    """Factors of 1 change nothing; they apply in this order, clipped to [0, 255] once, at the end."""

    brightness: float  # factor on every channel
    contrast: float  # factor on the distance to mid-grey (127.5)
    saturation: float  # factor on the distance to the pixel's own grey


@dataclass(frozen=True)
class Zoom:
    """The part of the picture that becomes the square, in place of resize and crop."""

    area: float  # share of the picture's area; less where the shape does not fit into the picture
    aspect: float  # width / height


@dataclass(frozen=True)
class View:
    """One crop, flip, colour change and blur of a sample."""

    crop_x: float = 0.5  # fraction of the width that is left over, 0 is the left edge, 0.5 the centre
    crop_y: float = 0.5  # the same for the height, 0 is the top edge
    flip: bool = False
    colour: Colour | None = None
    zoom: Zoom | None = None
    blur: float = 0.0  # standard deviation in pixels of the square


CENTRE = View()  # of evaluation and prediction


def draw_view(
    seed: int,
    epoch: int,
    key: str,
    window: tuple[float, float],
    *,
    flip: float,
    random_crop: bool,
    color: float,
    least_area: float = 1.0,
    blur: float = 0.0,
) -> View:
    """The view of a training sample.

    flip: probability; color: largest relative change of each factor; least_area: smallest share of the
    picture's area that is cut out and resized, 1: none is; blur: largest standard deviation, pixels.
    """
    draws = stable_uniforms(9, "view", seed, epoch, key, *map(float, window))
    x, y, mirror, *factors, area, shape, sigma = draws
    colour = Colour(*(float(1 + color * (2 * value - 1)) for value in factors)) if color > 0 else None
    crop_x, crop_y = (float(x), float(y)) if random_crop else (0.5, 0.5)
    zoom = None
    if least_area < 1:
        aspect = math.exp((2 * float(shape) - 1) * math.log(MOST_ASPECT))
        zoom = Zoom(float(least_area + (1 - least_area) * area), aspect)
    return View(crop_x, crop_y, bool(mirror < flip), colour, zoom, float(blur * sigma))


def resized_size(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after the short side became `resize` pixels; the long side is rounded half up.

    resize: two numbers are the width and height themselves.
    """
    if not isinstance(resize, int):
        return resize[1], resize[0]
    scale = resize / min(height, width)
    return max(resize, math.floor(height * scale + 0.5)), max(resize, math.floor(width * scale + 0.5))


def apply_view(frames: torch.Tensor, view: View, *, resize: int | tuple[int, int], crop: int) -> torch.Tensor:
    """Resize, crop, mirror, recolour and blur decoded frames.

    frames: (F, H, W, 3) uint8. Returns (F, 3, crop, crop) uint8 on the same device. The resize is bilinear
    and antialiased (the kernel widens with the reduction).
    """
    images = frames.permute(0, 3, 1, 2)  # (F, 3, H, W)
    if view.zoom is None:
        images = _resize(images, *resized_size(images.shape[2], images.shape[3], resize))
        images = _cut(images, view, crop, crop)
    else:
        images = _cut(images, view, *zoomed_size(images.shape[2], images.shape[3], view.zoom))
        images = _resize(images, crop, crop)
    if view.flip:
        images = images.flip(3)
    if view.colour is not None:
        images = _recolour(images, view.colour)
    return _blur(images, view.blur) if view.blur >= LEAST_BLUR else images


def zoomed_size(height: int, width: int, zoom: Zoom) -> tuple[int, int]:
    """Height and width of the part of a picture, made smaller in its shape where it does not fit; pixels."""
    side = math.sqrt(zoom.area * height * width)
    part_height, part_width = side / math.sqrt(zoom.aspect), side * math.sqrt(zoom.aspect)
    fits = min(1.0, height / part_height, width / part_width)
    return max(1, math.floor(part_height * fits + 0.5)), max(1, math.floor(part_width * fits + 0.5))


def _cut(images: torch.Tensor, view: View, height: int, width: int) -> torch.Tensor:
    """The part of this size where the view says."""
    top = math.floor(view.crop_y * (images.shape[2] - height) + 0.5)
    left = math.floor(view.crop_x * (images.shape[3] - width) + 0.5)
    return images[:, :, top : top + height, left : left + width]


def _resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if (height, width) == tuple(images.shape[2:]):
        return images
    resize = partial(F.interpolate, size=(height, width), mode="bilinear", antialias=True)
    if images.device.type == "cpu":  # 8-bit kernel: 4 to 20 times as fast as float32, within 1 of it
        resized: torch.Tensor = resize(images)
        return resized
    return _in_float(images, resize, height, width)  # CUDA has the float kernel only


def _in_float(
    images: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], height: int, width: int
) -> torch.Tensor:
    """What `change` makes of images (F, 3, H, W) in float32, rounded to uint8; a few frames at a time."""
    changed = images.new_empty((len(images), 3, height, width))
    parts = (torch.split(tensor, FRAMES_IN_FLOAT) for tensor in (changed, images))
    for into, chunk in zip(*parts, strict=True):
        into.copy_(change(chunk.float()).round_().clamp_(0, 255))
    return changed


def colour_matrix(colour: Colour) -> tuple[torch.Tensor, torch.Tensor]:
    """The change as one affine map of a pixel, `matrix @ rgb + offset`: (3, 3) and (3,) float32."""
    keep = torch.eye(3) * colour.saturation
    grey = torch.tensor(LUMA).expand(3, 3) * (1 - colour.saturation)
    # saturation keeps greys as they are, so contrast's offset passes through it unchanged
    return (keep + grey) * (colour.contrast * colour.brightness), torch.full(
        (3,), 127.5 * (1 - colour.contrast)
    )


def _recolour(images: torch.Tensor, colour: Colour) -> torch.Tensor:
    matrix, offset = (part.to(images.device) for part in colour_matrix(colour))

    def recolour(x: torch.Tensor) -> torch.Tensor:
        return (matrix @ x.flatten(2)).add_(offset[:, None]).view(x.shape)

    return _in_float(images, recolour, *images.shape[2:])


def blur_kernel(sigma: float) -> torch.Tensor:
    """Weights of the pixels within three standard deviations (pixels), (2 r + 1,) float32; their sum is 1."""
    radius = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, along columns, then rows; the outermost pixels stand for those outside."""
    kernel = blur_kernel(sigma).to(images.device)
    radius = len(kernel) // 2

    def blur(x: torch.Tensor) -> torch.Tensor:
        planes = x.flatten(0, 1)[None]  # (1, F * 3, H, W): as channels of one image several times as fast
        count = planes.shape[1]
        columns, rows = kernel.view(1, 1, -1, 1), kernel.view(1, 1, 1, -1)
        planes = F.pad(planes, (0, 0, radius, radius), mode="replicate")
        planes = F.conv2d(planes, columns.expand(count, 1, -1, 1), groups=count)
        planes = F.pad(planes, (radius, radius, 0, 0), mode="replicate")
        return F.conv2d(planes, rows.expand(count, 1, 1, -1), groups=count).view(x.shape)

    return _in_float(images, blur, *images.shape[2:])
