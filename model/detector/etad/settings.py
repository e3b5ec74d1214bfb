"""Settings of ETAD's detector as released; the defaults are its authors', what is ours is off."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from settings_group import SettingsGroup


class EtadSettings(SettingsGroup):
    """ETAD's detector as released, which detector.kind: etad chooses, and what we add to it; its sizes,
    sampling, thresholds and weights are those of detector that name no other kind."""

    head_layers: int = Field(3, ge=1)
    """Hidden layers of detector.head_dim channels in each head of a stage. More can tell more apart, are
    slower and overfit sooner; weights fit one number alone."""

    offset_beta: float = Field(1.0, gt=0)
    """Error of an offset, in lengths of the proposal, below which the smooth L1 loss is quadratic. Larger
    weakens the pull of small errors; 0.1 is ours (detector.offset_beta)."""

    boundary_radius: float = Field(1.5, gt=0)
    """Feature steps around a true start or end of which a step must lie half inside to count as start or end.
    Larger is easier to learn and less precise; 1 is ours (detector.boundary_radius)."""

    balancing: Literal["drawn", "weighted"] = "drawn"
    """How many proposals that match nothing count: drawn takes about as many as match, anew in each step;
    weighted, ours, takes all and weighs them as much in total: less noise."""

    matching: Literal["once", "each_stage"] = "once"
    """Which action a proposal is trained towards: once, the one that it overlaps most before the first stage,
    in all of them; each_stage, ours, matches again after it was moved."""

    bins: Literal["sampled", "aligned", "exact"] = "sampled"
    """How the features of a proposal are averaged: sampled at points up to a step apart, half a step late, as
    in torchvision; aligned is not late; exact integrates over each bin. OpenTAD has aligned, exact is
    ours."""

    origin: Literal["authors", "opentad"] = "authors"
    """Whose stages they are: the authors' have convolutions, and offsets of start and end from a quarter of
    the bins each; OpenTAD's have neither. OpenTAD's weights want detector.etad.bins aligned and 16
    detector.roi_bins."""

    norms: bool = False
    """Whether, as in ours, norms follow the convolutions of boundary head and stages, and the layer that the
    heads of a stage share. They train faster from random weights."""

    class_scores: bool = False
    """Whether steps and proposals get class scores, ours. false, as released: detections need the class
    scores of an external classifier, all classes score 1 without."""

    step_shortcut: bool = False
    """Whether the class scores of steps see the encoder's features beside the neck, ours, so that an encoder
    from random weights gets a class gradient at once. Needs detector.etad.class_scores."""

    @model_validator(mode="after")
    def _check_shortcut(self) -> EtadSettings:
        if self.step_shortcut and not self.class_scores:
            raise ValueError(
                "step_shortcut: got true without class_scores, want detector.etad.class_scores=true, too"
            )
        return self
