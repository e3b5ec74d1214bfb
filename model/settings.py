"""Settings of the encoder: its backbone, how it is made reversible, which clips get a gradient."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.backbones import BACKBONES
from settings_group import SettingsGroup


class BetaSettings(SettingsGroup):
    """beta from `start` to `end` over the first `fraction` of a run's steps, `end` from then on."""

    # constant: `end` from the first step; linear; cosine: slow at both ends
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    # 0 is the pretrained network itself; a stage whose beta is too small to invert is checkpointed meanwhile
    start: float = Field(0.0, ge=0.0, le=1.0)
    # 1 is Re2TAL's network, inverted without error
    end: float = Field(1.0, ge=0.0, le=1.0)
    # share of the run's optimizer steps until `end` is reached
    fraction: float = Field(0.5, gt=0.0, le=1.0)


class EncoderSettings(SettingsGroup):
    """The clip encoder and how its gradient is sampled."""

    # one of model.backbones.BACKBONES
    backbone: str = "r2plus1d_34"
    # rewire the residual stages so that activations are recomputed from outputs instead of stored
    reversible: bool = True
    # coefficient of the reversible recurrence over the run: 0 is the pretrained network, 1 is Re2TAL's
    beta: BetaSettings = BetaSettings()
    # at beta = 1 keep the states on a fixed-point grid: nothing is lost when they are recomputed
    fixed_point_states: bool = True
    # count each rewired branch 1 + beta times: closer to the pretrained network; False is Re2TAL's network
    leapfrog: bool = False
    # safetensors file with the backbone's pretrained weights; None: random initialisation
    weights: str | None = None
    # True: the encoder is never trained (the features are fixed), and no clip is encoded twice
    frozen: bool = False
    # True: batch norm uses and updates batch statistics; False: the pretrained ones, as ETAD and Re2TAL
    train_batch_norm: bool = False
    # fraction of a video's clips whose gradient is computed; 1.0 is the full gradient
    clip_ratio: float = Field(0.3, gt=0.0, le=1.0)
    # random: without replacement; uniform: evenly spaced, random phase; block: one contiguous run
    clip_sampling: Literal["random", "uniform", "block"] = "random"
    # none: ETAD's, too small by clip_ratio; inverse: times 1 / clip_ratio, unbiased if random
    gradient_scale: Literal["none", "inverse"] = "none"
    # feature steps per clip, the mean over each part of its time; 1 for many short clips (ETAD),
    # None: as many as the backbone gives, for few long ones (Re2TAL)
    steps_per_clip: int | None = Field(1, ge=1)
    # clips that go through the encoder at once: time against memory
    clips_per_forward: int = Field(4, ge=1)

    def model_post_init(self, context: object, /) -> None:
        """Refuse an unknown backbone by name."""
        if self.backbone not in BACKBONES:
            raise ValueError(
                f"encoder.backbone: got {self.backbone!r}, want one of {', '.join(sorted(BACKBONES))}"
            )
