"""Settings of the encoder: its backbone, how it is made reversible, which clips get a gradient."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from model.backbones import BACKBONES, WITHOUT_RESIDUALS, check_backbone_name
from model.late_choice import LateStrategy
from model.schedule import BetaSettings, RatioSchedule
from settings_group import SettingsGroup

# Another library's network is looked up when it is built: settings are read where it is not installed, too.
BackboneName = Annotated[
    str,
    AfterValidator(check_backbone_name),
    WithJsonSchema(
        {
            "type": "string",
            "enum": [*BACKBONES, "timm:NAME", "torchvision:NAME", "hf:NAME", "hf:FOLDER", "entry:NAME"],
        }
    ),
]


PRETRAINED = "pretrained"  # encoder.weights: those that the backbone's library downloads


class EncoderSettings(SettingsGroup):
    """The network that turns clips into features, what it stores, and which clips get a gradient."""

    backbone: BackboneName = "r2plus1d_34"
    """Network that turns a clip into features, by name: one of ours, or timm:NAME, torchvision:NAME, hf:NAME
    or entry:NAME for one of another library. Larger ones see more and take longer. docs/choose-settings.md
    has the sizes of ours, docs/any-network.md what holds for others."""

    temporal: Literal["shift", "mean"] = "shift"
    """How another library's network for images sees motion. shift: some channels of each residual block come
    from the frames before and after, as in TSM. mean: each frame is seen alone, as in pretraining. Unused for
    networks that take clips."""

    reversible: bool = True
    """Whether the residual stages are rewired so that activations are computed again from the outputs instead
    of being stored: much less memory, each block computed twice. false: the ordinary network. i3d has no
    residual stages: it wants false, and its modules are computed twice all the same."""

    beta: BetaSettings = BetaSettings()

    fixed_point_states: bool = True
    """Whether the states between blocks are rounded to a fixed-point grid at beta 1, so that the backward
    pass computes the very same activations again. false: floating point as in Re2TAL, with small errors."""

    leapfrog: bool = False
    """Whether each rewired branch counts 1 + beta times, which stays nearer to the pretrained network: true
    with pretrained weights. false is Re2TAL's network."""

    weights: str | None = None
    """File with the backbone's pretrained weights, as convert-weights writes it; null: random weights, which
    need more videos and epochs. pretrained: those that timm, torchvision or Hugging Face downloads."""

    frozen: bool = False
    """Whether the encoder is never trained. true: the features are fixed, those of evaluation (no drop-path,
    no dropout, no statistics of the clips at hand, beta at encoder.beta.start where it has a schedule), and
    every clip is encoded once, which is faster and needs less memory. false: encoder and detector learn
    together."""

    frozen_stages: int = Field(-1, ge=-1)
    """How much of a pretrained backbone stays as it is, as in mmaction2: -1 nothing, 0 its stem, n the stem
    and the first n stages, their norms too. More take less memory and time, and adapt less to the videos.
    docs/choose-settings.md says how many stages each backbone has."""

    train_batch_norm: bool = False
    """Whether batch norm uses and updates the statistics of the clips at hand: true with random weights.
    false keeps the pretrained statistics, as ETAD and Re2TAL do, and so does what is frozen."""

    clip_ratio: float = Field(0.3, gt=0.0, le=1.0)
    """Share of a video's clips whose gradient is computed. 1 is the full gradient; less saves time and little
    memory, and makes the gradient noisier."""

    clip_ratio_schedule: RatioSchedule = RatioSchedule()

    clip_sampling: Literal[
        "random", "uniform", "block", "labels", "farthest", "dpp", "top_gradient", "importance"
    ] = "random"
    """How the clips with a gradient are chosen, see docs/sampling.md. random draws them, uniform takes evenly
    spaced ones from a random first one on, block takes neighbours, labels those in and around true actions
    first; farthest and dpp take clips whose features differ; top_gradient takes those with the largest
    gradients, importance draws them in proportion to their gradients."""

    gradient_scale: Literal["none", "inverse"] = "none"
    """Whether the encoder's gradient makes up for the clips without one. none leaves it too small by
    encoder.clip_ratio, as ETAD does; inverse divides it by encoder.clip_ratio, which is right on average if
    encoder.clip_sampling is random or uniform; importance has weights of its own, which are right on average
    with either."""

    steps_per_clip: int | None = Field(1, ge=1)
    """Feature steps per clip, each the mean over its part of the clip. 1 suits many short clips (ETAD); null
    keeps all that the backbone gives, for few long clips (Re2TAL)."""

    clips_per_forward: int = Field(4, ge=1)
    """Clips that go through the encoder at once. More are faster and need more memory; what is computed is
    the same, but for encoder.train_batch_norm. Lower it first when memory runs out."""

    keep_graphs: bool = False
    """Whether what the encoder keeps of the clips with a gradient (the states of a reversible network) stays
    from the first forward until the backward pass. true: these clips are encoded once less, so a step is
    faster, and they take memory all at the same time. false: encoder.clips_per_forward clips at a time."""

    slice_mib: int | None = Field(256, ge=1)
    """MiB that one residual branch of a reversible video_swin or videomae may take: one that would take more
    runs on slices of its windows, samples or tokens, one after another. Less needs less memory for long or
    large clips, and below some tens is slower; what is computed is the same. null: branches run whole."""

    @property
    def beta_of_run(self) -> BetaSettings:
        """beta, which stays where it starts if the encoder is frozen: it would change the fixed features."""
        if not self.frozen or self.beta.schedule == "constant":
            return self.beta
        return self.beta.model_copy(update={"schedule": "constant", "end": self.beta.start})

    @model_validator(mode="after")
    def _check_reversible(self) -> EncoderSettings:
        if self.reversible and self.backbone in WITHOUT_RESIDUALS:
            raise ValueError(
                f"reversible: {self.backbone} has no residual sum, so nothing of it can be reversed; "
                "set it to false: its modules are then recomputed, and encoder.clip_ratio keeps a step small"
            )
        if self.keep_graphs and self.clip_sampling in get_args(LateStrategy):
            raise ValueError(
                f"keep_graphs: got true with clip_sampling {self.clip_sampling}, which chooses the clips "
                "after they were encoded; want random, uniform, block or labels"
            )
        if self.weights == PRETRAINED and self.backbone in BACKBONES:
            raise ValueError(
                f"weights: {PRETRAINED} is for timm:, torchvision: and hf: backbones, and {self.backbone} is "
                "ours; get a file and convert it with leantad convert-weights"
            )
        return self
