"""Deterministic crop, flip and colour jitter of one sample.

A view is drawn from (seed, epoch, key, window) alone, so decoding a sample again gives the same pixels, and
every frame of a sample gets the same one: a crop or a colour that jumps between clips would look like motion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from .order import stable_seed

LUMA = (0.299, 0.587, 0.114)  # BT.601, the matrix that the decoder uses as well
CHUNK_FRAMES = 64  # frames converted to float at a time
RESIZED_AT_ONCE = 16  # frames of source size that a GPU has in float, for each of several decoders


@dataclass(frozen=True)
class Colour:
    """Factors of 1 change nothing; they apply in this order, clipped to [0, 255] once, at the end."""

    brightness: float  # factor on every channel
    contrast: float  # factor on the distance to mid-grey (127.5)
    saturation: float  # factor on the distance to the pixel's own grey


@dataclass(frozen=True)
class View:
    """One crop, flip and colour change of a sample."""

    crop_x: float = 0.5  # fraction of the width that is left over, 0 is the left edge, 0.5 the centre
    crop_y: float = 0.5  # the same for the height, 0 is the top edge
    flip: bool = False
    colour: Colour | None = None


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
) -> View:
    """The view of a training sample. flip: probability; color: largest relative change of each factor."""
    generator = np.random.PCG64(stable_seed("view", seed, epoch, key, *map(float, window)))
    # 53 bits to [0, 1); raw output, since NumPy promises never to change that stream
    x, y, mirror, *factors = (generator.random_raw(6) >> np.uint64(11)) / 2.0**53
    colour = Colour(*(float(1 + color * (2 * value - 1)) for value in factors)) if color > 0 else None
    crop_x, crop_y = (float(x), float(y)) if random_crop else (0.5, 0.5)
    return View(crop_x, crop_y, bool(mirror < flip), colour)


def resized_size(height: int, width: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width after the short side became `resize` pixels; the long side is rounded half up.

    resize: two numbers are the width and height themselves.
    """
    if not isinstance(resize, int):
        return resize[1], resize[0]
    scale = resize / min(height, width)
    return max(resize, math.floor(height * scale + 0.5)), max(resize, math.floor(width * scale + 0.5))


def apply_view(frames: torch.Tensor, view: View, *, resize: int | tuple[int, int], crop: int) -> torch.Tensor:
    """Resize, crop, mirror and recolour decoded frames.

    frames: (F, H, W, 3) uint8. Returns (F, 3, crop, crop) uint8 on the same device. The resize is bilinear
    and antialiased (the kernel widens with the reduction).
    """
    height, width = resized_size(frames.shape[1], frames.shape[2], resize)
    images = frames.permute(0, 3, 1, 2)  # (F, 3, H, W)
    if (height, width) != tuple(images.shape[2:]):
        images = _resize(images, height, width)
    top = math.floor(view.crop_y * (height - crop) + 0.5)
    left = math.floor(view.crop_x * (width - crop) + 0.5)
    images = images[:, :, top : top + crop, left : left + crop]
    if view.flip:
        images = images.flip(3)
    return images if view.colour is None else _recolour(images, view.colour)


def _resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if images.device.type == "cpu":  # 8-bit kernel: 4 to 20 times as fast as float32, within 1 of it
        return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)
    chunks = [  # CUDA has the float kernel only; a few frames at a time bound its memory
        F.interpolate(chunk.float(), size=(height, width), mode="bilinear", antialias=True)
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for chunk in torch.split(images, RESIZED_AT_ONCE)
    ]
    return torch.cat(chunks)


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
    chunks = [
        torch.einsum("dc,fchw->fdhw", matrix, chunk.float()).add_(offset[:, None, None])
        for chunk in torch.split(images, CHUNK_FRAMES)
    ]
    return torch.cat([chunk.round_().clamp_(0, 255).to(torch.uint8) for chunk in chunks])
