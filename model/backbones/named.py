"""A library's network as a backbone: per frame where it is one for images, its own way where it is for clips.

The names of its parameters are the library's, so its state dicts fit as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..tracing.example import Example
from .backbone import Backbone
from .described import Described, describe_network
from .feature_maps import clip_maps, image_maps, main_output, number_of_features
from .libraries import one_line
from .temporal import FrameCount, add_shifts, keep_statistics

SMALL, SMALL_CLIP = 64, 8  # pixels and frames of an example, if the network takes them
IMAGES = 2  # in the example that shows the order of blocks; of clips one is enough for batch norms


class NamedBackbone(Backbone):
    """The network, its adapters and its description; `network` holds all parameters."""

    def __init__(self, full_name: str, described: Described, temporal: str) -> None:
        super().__init__()
        self.full_name, self.described = full_name, described
        self.network = described.network
        self.mean, self.std = described.mean, described.std
        self.frame_count = FrameCount()
        self.known_shapes: set[tuple[int, ...]] = set()
        self.example_shape, self.num_features = self._find_features()
        self.shifted: list[str] = []
        if described.frames is None and temporal == "shift":
            self.frame_count.frames = IMAGES
            self.shifted = add_shifts(self.network, self.example(), self.frame_count)
            if not self.shifted:
                raise ValueError(
                    f"{full_name}: no residual block is found that could see its neighbouring frames; set "
                    "encoder.temporal to mean"
                )
        keep_statistics(self.network)

    def example(self) -> Example:
        """A small batch that the network takes, random."""
        x = torch.randn(self.example_shape, generator=torch.Generator().manual_seed(0))
        return self._call_of(x)

    def _example_shapes(self) -> Iterator[tuple[int, ...]]:
        """Shapes for `example`: a small one, which costs less, and what the network was made for."""
        size, frames = self.described.size, self.described.frames
        small = (min(SMALL, size[0]), min(SMALL, size[1]))
        short = frames if self.described.fixed == "frames" else SMALL_CLIP
        small = size if self.described.fixed == "pixels" else small
        for pixels, length in ((small, short or 1), (size, frames or 1)):
            yield (IMAGES, 3, *pixels) if frames is None else (1, 3, min(length, frames), *pixels)

    def _call_of(self, x: Tensor) -> Example:
        """The arguments for images (n, 3, H, W) or clips (n, 3, L, H, W)."""
        described = self.described
        if described.frames is not None and described.frames_first:
            x = x.transpose(1, 2)
        return Example((x,)) if described.argument is None else Example((), {described.argument: x})

    def _find_features(self) -> tuple[tuple[int, ...], int]:
        """The first shape that the network takes, and D; the layout of what it returns must be known."""
        problem = Exception()
        for shape in self._example_shapes():
            example = self._call_of(torch.zeros(shape))
            try:
                with torch.no_grad():
                    y = main_output(self.network(*example.args, **example.kwargs))
                features = number_of_features(y, self.described.features)
                self._maps(y, features, shape)
                return shape, features
            except Exception as error:  # whatever foreign code raises for an input that is none of its own
                problem = error
        raise ValueError(f"{self.full_name}: cannot be a backbone ({one_line(problem, 200)})") from problem

    def _maps(self, y: Tensor, features: int, shape: Sequence[int]) -> Tensor:
        """shape: of the images or clips that y is of."""
        if self.described.frames is None:
            return image_maps(y, features, self.described)
        return clip_maps(y, features, self.described, frames=shape[2])

    def _run(self, x: Tensor) -> Tensor:
        """x: images or clips. Returns their maps; ValueError where the network refuses a new shape."""
        call, shape = self._call_of(x), tuple(x.shape[1:])
        try:
            y = self._maps(main_output(self.network(*call.args, **call.kwargs)), self.num_features, x.shape)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            if shape in self.known_shapes or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{self.full_name}: does not take clips like these ({one_line(error, 200)}); it was made for "
                f"{self.made_for}: change data.clip_frames or data.crop"
            ) from error
        self.known_shapes.add(shape)
        return y

    def _check_clip(self, frames: int, pixels: Sequence[int]) -> None:
        """ValueError for a clip whose steps or places the network would mix up."""
        described = self.described
        if described.fixed == "frames" and frames != described.frames:
            raise ValueError(
                f"data.clip_frames: got {frames}, want {described.frames}: {self.full_name} was made "
                "for that many, and mixes up the steps of other clips"
            )
        if described.fixed == "pixels" and tuple(pixels) != described.size:
            raise ValueError(
                f"data.crop: got {'x'.join(map(str, pixels))}, want {'x'.join(map(str, described.size))}: "
                f"{self.full_name} was made for that many pixels, and mixes up the places of other clips"
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 3, L, H, W), normalised pixels. Returns (n, D, t, h, w) in the dtype of x.

        t is L for a network of images. Tokens are one column (h = tokens, w = 1), vectors a map of one pixel.
        """
        if self.described.frames is not None:
            self._check_clip(x.shape[2], x.shape[3:])
            return self._run(x).to(x.dtype)
        self.frame_count.frames = x.shape[2]
        y = self._run(x.transpose(1, 2).flatten(0, 1))  # (n L, D, h, w)
        return torch.unflatten(y, 0, (-1, x.shape[2])).transpose(1, 2).to(x.dtype)

    def parts(self) -> Sequence[Sequence[str]]:
        """Raises ValueError: another library's network does not say what its stages are."""
        raise ValueError(
            f"encoder.frozen_stages: {self.full_name} does not name its stages; set it to -1, or "
            "encoder.frozen to true, which freezes all of it"
        )

    @property
    def weighted(self) -> nn.Module:
        """The library's network, with its own names."""
        return self.network

    @property
    def head(self) -> tuple[str, ...]:
        """Modules of the classifier, which was left out."""
        return self.described.head

    @property
    def made_for(self) -> str:
        """Its frames and pixels, as text."""
        height, width = self.described.size
        frames = self.described.frames
        return f"{height}x{width} pixels" if frames is None else f"{frames} frames of {height}x{width} pixels"

    def describe(self) -> str:
        """One line: how it sees clips, what it was made for, the normalisation and whose it is."""
        if self.described.frames is not None:
            time = "sees clips as a whole"
        elif self.shifted:
            time = f"sees frame by frame, {len(self.shifted)} blocks with a shift in time"
        else:
            time = "sees each frame alone (encoder.temporal mean)"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.full_name}: D = {self.num_features}, {time}; made for {self.made_for}; "
            f"mean {mean}, std {std} ({self.described.origin})"
        )


def build_named(full_name: str, temporal: str = "shift") -> Backbone:
    """The backbone of another library, with fresh weights; nothing is downloaded.

    temporal: of a network for images, "shift" or "mean". It is built on the CPU, for it runs once; inside
    torch.device("meta") it is moved there afterwards, and cannot be rewired. Raises ValueError, one line.
    """
    on_meta = torch.get_default_device().type == "meta"
    with torch.device("cpu"):
        described = describe_network(full_name)
        backbone: Backbone
        if isinstance(described.network, Backbone):  # an entry's, prepared for rewiring
            backbone = described.network
        else:
            backbone = NamedBackbone(full_name, described, temporal)
    return backbone.to("meta") if on_meta else backbone.train()


def pretrained_weights(full_name: str) -> dict[str, Tensor]:
    """The weights that the library offers, downloaded if need be; ValueError without any."""
    return dict(describe_network(full_name, pretrained=True).network.state_dict())
