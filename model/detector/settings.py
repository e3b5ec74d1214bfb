"""Settings of the detector: sizes, proposals, thresholds, and the weights of its losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from model.schedule import RatioSchedule
from settings_group import SettingsGroup

from .actionformer.settings import ActionFormerSettings
from .etad.settings import EtadSettings


class LossWeights(SettingsGroup):
    """Weights of the parts of the loss, ETAD's and ours for classes; a stage's parts count once per stage."""

    boundary: float = Field(1.0, ge=0)
    """Weight of the start and end scores of feature steps. 0 leaves them untrained, which does no harm while
    post.boundary_power is 0."""

    step_class: float = Field(1.0, ge=0)
    """Weight of the class scores of feature steps. Larger helps an encoder that starts from random weights; 0
    leaves them untrained, and class scores of proposals build on them."""

    tiou_class: float = Field(1.0, ge=0)
    """Weight of the score for a high tIoU (above detector.confident_tiou), one of the two factors of a
    proposal's quality. Larger puts more effort into it."""

    tiou_regression: float = Field(5.0, ge=0)
    """Weight of the estimate of a proposal's tIoU, the other factor of its quality. Larger puts more effort
    into ranking proposals by how well they fit."""

    boundary_offset: float = Field(10.0, ge=0)
    """Weight of the offsets that move a proposal's start and end. Larger puts more effort into precise
    borders."""

    centre_offset: float = Field(10.0, ge=0)
    """Weight of the offsets that move a proposal's centre and change its length. Larger puts more effort into
    precise borders."""

    proposal_boundary: float = Field(0.5, ge=0)
    """Weight of whether a proposal's start and end are near true ones (see detector.boundary_tolerance).
    Larger puts more effort into it, which helps training alone: no detection uses this score."""

    proposal_class: float = Field(4.0, ge=0)
    """Weight of the class scores of proposals. Larger puts more effort into which action it is, against where
    it is."""


class DetectorSettings(SettingsGroup):
    """Which detector, and its sizes, sampling and losses; what is not ETAD's is named in docs/etad.md."""

    kind: Literal["proposals", "etad", "actionformer"] = "proposals"
    """Which detector: proposals scores and refines all segments of a window, after ETAD; etad is ETAD's as
    released; actionformer has one segment per point, as ActionFormer. What each reads of the settings is in
    docs/choose-settings.md."""

    class_agnostic: bool = False
    """Whether the detector is trained on where actions are alone: all count as one class, in training and in
    validation, and `leantad eval --external-scores` says which. true is what ETAD and OpenTAD do on data sets
    for which others' class scores are at hand."""

    num_steps: int = Field(128, ge=4)
    """Feature steps T of a window, the time axis of the detector; features of another length are interpolated
    to it. More steps find shorter actions; there are T (T + 1) / 2 proposals, so memory and time grow with
    the square."""

    neck_dim: int = Field(256, ge=8, multiple_of=4)
    """Channels of the neck, and of each of its two LSTMs. More can tell more apart, need more memory and
    time, and overfit sooner."""

    fc_dim: int = Field(512, ge=8)
    """Channels of the layer that all heads of a stage share. More can tell more apart, need more memory and
    time, and overfit sooner."""

    head_dim: int = Field(128, ge=8)
    """Channels inside each head of a stage. More can tell more apart, need more memory and time, and overfit
    sooner."""

    roi_bins: int = Field(24, ge=4, multiple_of=2)
    """Bins that the features of a proposal are averaged into, along time. More show the heads finer timing
    and need more memory."""

    roi_context: float = Field(0.5, ge=0)
    """Share of its length by which a proposal is lengthened on each side before its features are averaged. 0
    shows the proposal alone; larger shows more of what comes before and after, in coarser bins."""

    proposal_ratio: float = Field(0.06, gt=0, le=1)
    """Share of all proposals that a training step draws from each window. More make the gradient less noisy
    and need more memory and time."""

    proposal_ratio_schedule: RatioSchedule = RatioSchedule()

    proposal_sampling: Literal["random", "grid", "block", "farthest", "dpp", "balanced", "scale_balanced"] = (
        "random"
    )
    """How these proposals are drawn, see docs/sampling.md. random from all alike; grid takes a fixed lattice,
    block neighbours, farthest and dpp spread them; balanced draws some of them around the true actions, so
    that short actions are trained on in every step; scale_balanced as many of each octave of lengths."""

    balanced_share: float = Field(0.5, ge=0, lt=1)
    """Share of the proposals that is drawn around true actions, if detector.proposal_sampling is balanced.
    Larger shows fewer proposals that match nothing."""

    balanced_tiou: float = Field(0.5, gt=0, lt=1)
    """tIoU with an action from which a proposal counts as around it, if detector.proposal_sampling is
    balanced. Larger draws better ones, of fewer kinds."""

    regression_tiou: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.7, 0.8, 0.9), min_length=1)
    """tIoU with an action above which a proposal's offsets are trained, one value per stage. Rising values
    let later stages do the fine work; each further value is a stage more, at the cost of memory and time."""

    confident_tiou: float = Field(0.9, gt=0, lt=1)
    """tIoU with an action above which a proposal counts as a hit for the score of a high tIoU. Larger is
    stricter: fewer hits to learn from, and a better ranking of the best proposals."""

    class_tiou: float = Field(0.5, gt=0, lt=1)
    """tIoU with an action above which a proposal's score for the action's class is trained towards that tIoU;
    below it, towards 0. Larger gives class scores to better fitting proposals only."""

    boundary_tolerance: float = Field(0.1, gt=0)
    """Share of its length within which a proposal's start (or end) counts as near the true one. Larger
    accepts less precise ones; see detector.weights.proposal_boundary."""

    offset_beta: float = Field(0.1, gt=0)
    """Error of an offset, in lengths of the proposal, below which the smooth L1 loss is quadratic. Larger
    weakens the pull of small errors."""

    boundary_radius: float = Field(1.0, gt=0)
    """Feature steps around a true start or end that count as start or end. Larger is easier to learn and less
    precise."""

    step_class_positives: float = Field(5.0, gt=0)
    """Weight of the classes that are present at a feature step against those that are not. Larger misses
    fewer actions and raises more false alarms."""

    shortcut_norm: bool = False
    """Bring the features of each step to mean 0 and variance 1 before they go past the neck into its class
    scores. Pretrained features have a scale of their own, on which training loses many steps; an encoder that
    is trained from random weights finds one."""

    class_prior: float = Field(0.05, gt=0, lt=1)
    """Class score that an untrained detector gives. Smaller keeps the many proposals that match nothing from
    drowning the few that do at first."""

    predict_proposals: int = Field(1024, ge=1)
    """Proposals of each video that prediction computes at once. More are faster and need more memory; the
    result is the same."""

    weights: LossWeights = LossWeights()
    actionformer: ActionFormerSettings = ActionFormerSettings()
    etad: EtadSettings = EtadSettings()

    @model_validator(mode="after")
    def _check_kind(self) -> DetectorSettings:
        coarsest = 2 ** (self.actionformer.num_levels - 1)
        if self.kind == "actionformer" and self.num_steps % coarsest:
            raise ValueError(
                f"num_steps: got {self.num_steps}, want a multiple of {coarsest}, as each of the "
                f"{self.actionformer.num_levels - 1} values of detector.actionformer.max_distances halves it"
            )
        if self.kind == "etad" and self.roi_bins % 4:
            raise ValueError(
                f"roi_bins: got {self.roi_bins}, want a multiple of 4, as detector.kind etad computes the "
                "offsets of starts and ends from a quarter of the bins each"
            )
        return self

    @property
    def num_stages(self) -> int:
        return len(self.regression_tiou)

    @property
    def num_samples(self) -> int:
        """Proposals per video and iteration, unless a schedule moves the ratio."""
        return self.num_samples_at(self.proposal_ratio)

    def num_samples_at(self, ratio: float) -> int:
        """Proposals per video and iteration at a ratio."""
        return max(1, round(ratio * self.num_steps * (self.num_steps + 1) / 2))
