"""Settings of ActionFormer's detector; the defaults are those of its THUMOS-14 configuration."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from settings_group import SettingsGroup


class ActionFormerSettings(SettingsGroup):
    """ActionFormer's detector, which detector.kind: actionformer chooses; its T is detector.num_steps."""

    embed_dim: int = Field(512, ge=8)
    """Channels of the pyramid, a multiple of detector.actionformer.num_heads. More can tell more apart, need
    more memory and time, and overfit sooner."""

    head_dim: int = Field(512, ge=8)
    """Channels inside the two heads, for classes and for distances. More can tell more apart, need more
    memory and time, and overfit sooner."""

    num_heads: int = Field(4, ge=1)
    """Attention heads of each block, which share its channels. More look at more things at once, each with
    fewer channels."""

    embed_layers: int = Field(2, ge=1)
    """Convolutions that take the encoder's features to detector.actionformer.embed_dim channels. More are
    slower and see further before the first attention."""

    stem_layers: int = Field(2, ge=0)
    """Attention blocks before the first halving, at the full number of steps. More are slower and can tell
    more apart."""

    head_layers: int = Field(2, ge=0)
    """Convolutions of each head before its last one. More are slower and can tell more apart."""

    max_distances: tuple[Annotated[float, Field(gt=0)], ...] = (4.0, 8.0, 16.0, 32.0, 64.0)
    """Longest distance in steps from a point to the start or end of its action on each level of the pyramid
    but the last, which takes what is longer; rising. Each further value is a level more, of half the steps,
    so detector.num_steps must be a multiple of 2 to the power of their number."""

    attention_windows: tuple[Annotated[int, Field(ge=0)], ...] = Field((19,), min_length=1)
    """Steps that each step attends to, itself in the middle, so odd; 0: all. One value for all levels or one
    for each; on a level of half the steps a window spans twice the time. Larger windows need more memory and
    time."""

    position_embedding: bool = False
    """Whether steps get their place in the window. true suits windows that are whole videos, as
    ActivityNet's."""

    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a channel of a training sample's features is zero in all steps, as in OpenTAD. Larger
    overfits later: 0.1 and 0.2 are OpenTAD's where the features are those of a fixed file."""

    drop_path: float = Field(0.1, ge=0, lt=1)
    """Probability that a training sample skips a part of a block. Larger overfits later and takes longer to
    train."""

    centre_radius: float | None = Field(1.5, gt=0)
    """Distance from an action's centre, in steps of the point's level, within which points are trained to
    detect it; null: all points inside the action. Larger trains more points on each action."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each class target that is spread over all classes. Larger makes scores less certain."""

    class_prior: float = Field(0.01, gt=0, lt=1)
    """Class score that an untrained detector gives. Smaller keeps the many points that match nothing from
    drowning the few that do at first."""

    distance_weight: float = Field(1.0, ge=0)
    """Weight of the loss of the distances against that of the classes. Larger puts more effort into precise
    borders."""

    step_class_weight: float = Field(0.0, ge=0)
    """Weight of a further loss, ours: class scores of each step, straight from the features. An encoder that
    starts from random weights needs it, some 6; 0 leaves it out, as ActionFormer does."""

    normaliser_start: float = Field(100.0, ge=1)
    """Number of matched points that the first losses are divided by, near that of a usual batch; then their
    moving average takes over. Larger makes the first steps smaller."""

    normaliser_momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the moving average of matched points that a step keeps. Larger changes more slowly; 0 divides
    by those of the step itself."""

    point_offset: float = Field(0.5, ge=0, lt=1)
    """Where in the first step of its cell a point lies: 0.5 is the middle, as in ActionFormer on ActivityNet;
    0 the beginning, as in OpenTAD's Re2TAL, whose weights want it."""

    origin: Literal["authors", "opentad"] = "authors"
    """Whose network it is, where they differ: in the epsilon of some norms, and in what stands behind
    the end of a padded video. Weights trained with OpenTAD, such as Re2TAL's, want opentad."""

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid."""
        return len(self.max_distances) + 1

    @property
    def windows(self) -> tuple[int, ...]:
        """The attention window of each level."""
        given = self.attention_windows
        return given * self.num_levels if len(given) == 1 else given

    @model_validator(mode="after")
    def _check(self) -> ActionFormerSettings:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim: got {self.embed_dim}, want a multiple of num_heads, which is {self.num_heads}"
            )
        if any(later <= earlier for earlier, later in pairwise(self.max_distances)):
            raise ValueError(f"max_distances: got {list(self.max_distances)}, want rising values")
        if len(self.windows) != self.num_levels:
            raise ValueError(
                f"attention_windows: got {len(self.windows)} values, want 1 or {self.num_levels}, one more "
                "than max_distances has"
            )
        if any(window and window % 2 == 0 for window in self.windows):
            raise ValueError(f"attention_windows: got {list(self.windows)}, want odd numbers, or 0 for all")
        return self
