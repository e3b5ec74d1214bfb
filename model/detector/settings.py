"""Settings of the detector: sizes, proposals, thresholds, and the weights of its losses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from settings_group import SettingsGroup


class LossWeights(SettingsGroup):
    """The weight of each part of the loss; those of the stages count once per stage. ETAD's, and ours for
    classes."""

    boundary: float = Field(1.0, ge=0)  # start and end of every step
    step_class: float = Field(1.0, ge=0)  # class of every step; 0 leaves the step head untrained
    tiou_class: float = Field(1.0, ge=0)  # is the tIoU of a proposal high
    tiou_regression: float = Field(5.0, ge=0)  # how high is it
    boundary_offset: float = Field(10.0, ge=0)  # start and end offsets
    centre_offset: float = Field(10.0, ge=0)  # centre and width offsets
    proposal_boundary: float = Field(0.5, ge=0)  # are a proposal's start and end near true ones
    proposal_class: float = Field(4.0, ge=0)  # tIoU of a proposal with the actions of each class


class DetectorSettings(SettingsGroup):
    """Sizes, sampling and losses of the detector; the defaults are ETAD's where it has one."""

    num_steps: int = Field(
        128, ge=4
    )  # T; other lengths are interpolated to it, the map has T (T + 1) / 2 proposals
    neck_dim: int = Field(256, ge=8, multiple_of=4)  # channels of the neck and of each LSTM
    fc_dim: int = Field(512, ge=8)  # width of the layer that all heads of a stage share
    head_dim: int = Field(128, ge=8)  # width of each head
    roi_bins: int = Field(24, ge=4, multiple_of=2)  # bins a proposal is averaged into
    roi_context: float = Field(
        0.5, ge=0
    )  # a proposal is lengthened by this share on each side before it is averaged
    proposal_ratio: float = Field(0.06, gt=0, le=1)  # share of the map trained on, per video and iteration
    proposal_sampling: Literal["random", "balanced"] = (
        "random"  # balanced: some of them drawn around the truth
    )
    balanced_share: float = Field(0.5, ge=0, lt=1)  # balanced: the share drawn around the truth
    balanced_tiou: float = Field(0.5, gt=0, lt=1)  # balanced: tIoU from which a proposal is around an action
    regression_tiou: tuple[float, ...] = (0.7, 0.8, 0.9)  # one per stage: from which tIoU offsets are taught
    confident_tiou: float = Field(0.9, gt=0, lt=1)  # tIoU above which the tIoU class is positive
    class_tiou: float = Field(
        0.5, gt=0, lt=1
    )  # tIoU above which a proposal's class score is taught that tIoU
    boundary_tolerance: float = Field(
        0.1, gt=0
    )  # an anchor's end is near a true one within this share of its length
    offset_beta: float = Field(
        0.1, gt=0
    )  # below this the smooth L1 of offsets is quadratic; in anchor lengths
    boundary_radius: float = Field(1.0, gt=0)  # steps around a true start or end that count as start or end
    step_class_positives: float = Field(5.0, gt=0)  # weight of a step's own class against the others
    class_prior: float = Field(0.05, gt=0, lt=1)  # the class scores a fresh detector gives
    predict_proposals: int = Field(1024, ge=1)  # proposals of each video walked at once in prediction: memory
    weights: LossWeights = LossWeights()

    @model_validator(mode="after")
    def _check(self) -> DetectorSettings:
        if not self.regression_tiou or not all(0 < t < 1 for t in self.regression_tiou):
            raise ValueError(
                f"regression_tiou: got {self.regression_tiou}, want one value in (0, 1) per stage"
            )
        return self

    @property
    def num_stages(self) -> int:
        return len(self.regression_tiou)

    @property
    def num_samples(self) -> int:
        """Proposals per video and iteration."""
        return max(1, round(self.proposal_ratio * self.num_steps * (self.num_steps + 1) / 2))
