"""Makes a backbone reversible: ours by their description, those of other libraries by tracing."""

from __future__ import annotations

from typing import Any

from torch import nn

from .backbones.backbone import Backbone
from .backbones.named import IMAGES, NamedBackbone
from .rewire import rewire
from .rewired_stage import Rewired


def rewire_backbone(backbone: Backbone, **options: Any) -> list[Rewired]:
    """`rewire`, in place, with the same options; returns what became of every block.

    A network of another library without values (on the meta device) stays as it is: it cannot run, which is
    how its blocks are proven, and its names and shapes are the same. Raises ValueError for one without a
    residual block.
    """
    if not isinstance(backbone, NamedBackbone):
        return rewire(backbone, **options)
    if any(parameter.is_meta for parameter in backbone.parameters()):
        return []
    call = backbone.example()
    backbone.frame_count.frames = IMAGES
    try:
        return rewire(backbone.network, example=call.args or call.kwargs, **options)
    except ValueError as error:
        raise ValueError(
            f"encoder.reversible: {backbone.full_name} cannot be reversed ({error}); set it to false"
        ) from error


def is_prepared(backbone: nn.Module) -> bool:
    """Whether it names its stages, as our own backbones do."""
    return hasattr(backbone, "stage_names")
