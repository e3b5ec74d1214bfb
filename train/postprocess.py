"""Turns raw detector outputs into detections: scores, seconds, soft-NMS per class, the best of each video.

The score of a (proposal, class) pair is quality^a * class_score^b * (start * end probability)^c, as in BMN
(Lin et al., ICCV 2019) and ETAD; windows of one video are merged in seconds before the suppression, so that
an action seen by two windows is reported once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.windows import Window, steps_to_seconds
from settings_group import SettingsGroup
from train.detections import PROPOSAL
from train.soft_nms import soft_nms
from train.voting import vote
from train.window_edges import cut_off

ExternalScores = Mapping[str, Mapping[str, float]]  # video -> label -> score of a video-level classifier


LEAST_SCORE = float(np.finfo(np.float32).tiny)  # what scores 0, as behind a video's end, is no detection


class PostSettings(SettingsGroup):
    """How raw outputs become detections; `leantad eval --from-raw` does it again without the network."""

    nms: Literal["gaussian", "linear", "hard"] = "gaussian"
    """What happens to detections that overlap a better one of their class: gaussian and linear lower their
    scores by the overlap, hard drops them."""

    sigma: float = Field(0.35, gt=0)
    """Width of the gaussian decay exp(-tIoU^2 / sigma), if post.nms is gaussian. Smaller suppresses more:
    fewer duplicates, and fewer actions that follow each other closely."""

    nms_tiou: float = Field(0.0, ge=0, lt=1)
    """tIoU up to which two detections of a class do not suppress each other. Larger keeps more of them; hard
    needs one above 0, such as 0.5."""

    voting_tiou: float = Field(0.0, ge=0, lt=1)
    """tIoU from which a suppressed detection still has a say in where the better one begins and ends, by its
    score; 0: none has. Larger lets closer ones vote only; ActionFormer has 0.9 on ActivityNet."""

    min_score: float = Field(1e-4, ge=0)
    """Score below which a detection is dropped, before or after suppression. Larger gives fewer detections in
    less time, and a lower recall."""

    max_detections: int = Field(100, ge=1)
    """Detections kept per video, the best of all classes. ActivityNet counts 100, THUMOS papers keep 200.
    More find more of a video's actions, at the cost of false ones and larger files."""

    pre_nms_topk: int = Field(2000, ge=1)
    """Pairs of a proposal and a class that enter the suppression, the best of each window. More are slower
    and rarely better."""

    external_labels: int = Field(2, ge=1)
    """Best labels of each video that are taken from external class scores (`leantad eval --external-scores`).
    2 is usual; more suit videos with actions of several classes, at the cost of false detections."""

    quality_power: float = Field(1.0, ge=0)
    """Exponent of a proposal's quality in the score quality^a x class score^b x boundary score^c; 0 leaves it
    out. Quality knows no class: 1 suits external class scores (ETAD's product), a small one such as 0.25 lets
    the detector's own class scores decide."""

    class_power: float = Field(1.0, ge=0)
    """Exponent of the class score in the score of a detection, see post.quality_power. Larger lets the class
    decide more; 0 leaves it out."""

    boundary_power: float = Field(0.0, ge=0)
    """Exponent of the boundary score, start probability times end probability, in the score of a detection.
    Larger prefers clear starts and ends; 0 leaves it out."""

    edge_steps: float = Field(1.0, ge=0)
    """Feature steps from an edge of its window, inside the video, within which a detection may be cut off: it
    is left out where another window shows that stretch clear of edges. 0 leaves all in, as other projects."""

    proposals_only: bool = False
    """Whether detections are segments alone, all with the label proposal and suppressed together: to measure
    AR@AN, or for a classifier of your own. Their score leaves the class score out; mAP is that of all actions
    as one class, in validation too."""

    boundary_peaks: bool = False
    """Whether a proposal is dropped unless the boundary scores where it starts and ends are peaks, or above
    half of the window's highest. true is ETAD's: fewer proposals, in less time."""

    @model_validator(mode="after")
    def _check_nms_tiou(self) -> PostSettings:
        if self.nms == "hard" and self.nms_tiou == 0:
            raise ValueError("nms_tiou: got 0 with nms=hard, want a tIoU above 0, such as 0.5")
        return self


@dataclass(frozen=True)
class RawWindow:
    """The detector's outputs for one window of a video; float32 arrays, P proposals, K classes, T steps."""

    key: str  # the video's key
    window: tuple[float, float]  # start and end, seconds
    duration: float  # of the video, seconds
    num_steps: int  # T
    segments: np.ndarray  # (P, 2) start and end, feature steps, 0 <= x <= T
    quality: np.ndarray  # (P,) in [0, 1], class-agnostic
    class_scores: np.ndarray  # (P, K) in [0, 1]
    boundary: np.ndarray  # (2, T) probability that an action starts, ends in a step


@dataclass(frozen=True)
class Candidates:
    """Scored (proposal, class) pairs: segments (n, 2) seconds, label (n,) index, scores (n,)."""

    segments: np.ndarray
    label: np.ndarray
    scores: np.ndarray

    def take(self, rows: np.ndarray) -> Candidates:
        return Candidates(self.segments[rows], self.label[rows], self.scores[rows])

    @staticmethod
    def join(parts: Sequence[Candidates]) -> Candidates:
        return Candidates(
            np.concatenate([part.segments for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )


def boundary_scores(window: RawWindow) -> NDArray[np.float64]:
    """(P,) start probability at each proposal's start times end probability at its end."""
    centres = np.arange(window.num_steps) + 0.5
    start: NDArray[np.float64] = np.interp(window.segments[:, 0], centres, window.boundary[0])
    end: NDArray[np.float64] = np.interp(window.segments[:, 1], centres, window.boundary[1])
    return start * end


def is_peak(scores: np.ndarray) -> NDArray[np.bool_]:
    """(T,) scores of steps: whether each is above both neighbours, or above half of the highest."""
    padded = np.pad(scores, 1)
    peak: NDArray[np.bool_] = (scores > padded[:-2]) & (scores > padded[2:]) | (scores > 0.5 * scores.max())
    return peak


def at_peaks(window: RawWindow) -> NDArray[np.bool_]:
    """(P,) whether each proposal starts and ends at peaks, as which ETAD takes the window's own ends, too."""
    start, end = is_peak(window.boundary[0]), is_peak(window.boundary[1])
    start[0] = end[-1] = True
    steps = np.clip(window.segments, 0, window.num_steps - 1).astype(np.int64)
    kept: NDArray[np.bool_] = start[steps[:, 0]] & end[steps[:, 1]]
    return kept


def pair_scores(window: RawWindow, class_scores: np.ndarray, settings: PostSettings) -> np.ndarray:
    """The score of each (proposal, class) pair, (P, K). class_scores: (P, K) or (1, K).

    ValueError naming the video if an output is not finite.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused below
        class_power = class_scores if settings.class_power == 1 else class_scores**settings.class_power
        scores = window.quality[:, None] ** settings.quality_power * class_power
        if settings.boundary_power:
            scores = scores * boundary_scores(window)[:, None] ** settings.boundary_power
    ends = (scores.min(initial=0), scores.max(initial=0))  # NaN if one is
    if not (np.isfinite(ends).all() and np.isfinite(window.segments).all()):
        raise ValueError(
            f"raw output of {window.key!r}, window {window.window}: has values that are not finite, "
            "want numbers; the weights have diverged, use an earlier checkpoint"
        )
    return scores


def best_candidates(window: RawWindow, class_scores: np.ndarray, settings: PostSettings) -> Candidates:
    """The window's best pairs, best first, without those that have no length in the video.

    class_scores and errors as in `pair_scores`.
    """
    scores = pair_scores(window, class_scores, settings)
    seconds = steps_to_seconds(window.segments.astype(np.float64), window.window, window.num_steps)
    seconds = np.clip(seconds, 0.0, window.duration)
    kept = seconds[:, 1] > seconds[:, 0]
    if settings.boundary_peaks:
        kept &= at_peaks(window)
    scores[~kept] = -1.0
    flat, least = scores.ravel(), max(settings.min_score, LEAST_SCORE)
    best_of_each = scores.max(axis=1)  # as many pairs as proposals: none of the best k is below their k-th
    if len(best_of_each) > settings.pre_nms_topk:
        least = max(least, np.partition(best_of_each, -settings.pre_nms_topk)[-settings.pre_nms_topk])
    enough = np.flatnonzero(flat >= least)
    if len(enough) > settings.pre_nms_topk:  # a full sort of P * K scores would take most of the time
        least = np.partition(flat[enough], -settings.pre_nms_topk)[-settings.pre_nms_topk]
        enough = enough[flat[enough] >= least]
    best = enough[np.argsort(-flat[enough], kind="stable")[: settings.pre_nms_topk]]
    proposal, label = np.divmod(best, scores.shape[1])
    return Candidates(seconds[proposal], label, flat[best])


def suppress(candidates: Candidates, settings: PostSettings) -> Candidates:
    """Soft-NMS within each label; the best `max_detections` of all, best first."""
    indices, scores = soft_nms(
        candidates.segments,
        candidates.scores.astype(np.float64),
        candidates.label,
        method=settings.nms,
        sigma=settings.sigma,
        nms_tiou=settings.nms_tiou,
        min_score=settings.min_score,
        max_keep=settings.max_detections,
    )
    best = Candidates(candidates.segments[indices], candidates.label[indices], scores)
    return best if settings.voting_tiou == 0 else moved_by_vote(best, candidates, settings.voting_tiou)


def moved_by_vote(detections: Candidates, candidates: Candidates, voting_tiou: float) -> Candidates:
    """The detections, each between the ends that the candidates of its label vote for."""
    segments = detections.segments.astype(np.float64)
    for label in np.unique(detections.label):
        rows, voters = detections.label == label, candidates.label == label
        segments[rows] = vote(
            segments[rows], candidates.segments[voters], candidates.scores[voters], voting_tiou=voting_tiou
        )
    return Candidates(segments, detections.label, detections.scores)


def top_external_labels(scores: ExternalScores, key: str, count: int) -> tuple[list[str], np.ndarray]:
    """The video's `count` best labels of an external classifier, and their scores as (1, count)."""
    if not scores.get(key):
        raise ValueError(f"external scores: none for video {key!r}, want label scores for every video")
    best = sorted(scores[key].items(), key=lambda item: -item[1])[:count]
    return [name for name, _ in best], np.array([[score for _, score in best]])


def postprocess_video(
    windows: Iterable[RawWindow],
    classes: Sequence[str],
    settings: PostSettings,
    *,
    external_scores: ExternalScores | None = None,
) -> list[dict[str, Any]]:
    """The detections in one video from all its windows, best first: [{"segment", "label", "score"}].

    Seconds, clipped to [0, duration], rounded to 0.1 ms; scores as the shortest text of the float32. What is
    returned is what detections.json holds, so mAP is the same from memory and from the file. With
    post.proposals_only all have the label of proposals.
    external_scores: {video: {label: score}}; the video's best labels then replace the detector's own class
    scores. ValueError naming the video if an output is not finite or external scores lack the video.
    """
    names, external = list(classes), None
    if settings.proposals_only:
        if external_scores is not None:
            raise ValueError("post.proposals_only: they have no class; leave it out, or --external-scores")
        names, external = [PROPOSAL], np.ones((1, 1))  # one label, whose score changes nothing
    key: str | None = None
    parts: list[Candidates] = []  # of hours of video: the best of each window, never its raw output
    seen: list[Window] = []
    for window in windows:
        if key is None and external_scores is not None:
            names, external = top_external_labels(external_scores, window.key, settings.external_labels)
        if key not in (None, window.key):
            raise ValueError(f"windows of {key}, {window.key}: want those of one video at a time")
        key = window.key
        class_scores = window.class_scores if external is None else external
        parts.append(best_candidates(window, class_scores, settings))
        seen.append(window.window)
    if len(parts) > 1 and settings.edge_steps > 0:
        margin = settings.edge_steps * np.diff(window.window).item() / window.num_steps
        cut = cut_off([part.segments for part in parts], seen, duration=window.duration, margin=margin)
        parts = [part.take(~rows) for part, rows in zip(parts, cut, strict=True)]
    if not any(len(part.scores) for part in parts):
        return []
    return as_entries(suppress(Candidates.join(parts), settings), names)


def as_entries(candidates: Candidates, names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of detections.json; names: of the labels."""
    segments, labels = candidates.segments.round(4).tolist(), candidates.label.tolist()
    scores = candidates.scores.astype(np.float32)
    return [
        {"segment": segment, "label": names[label], "score": float(str(score))}
        for segment, label, score in zip(segments, labels, scores, strict=True)
    ]


def postprocess_videos(
    windows: Iterable[RawWindow],
    classes: Sequence[str],
    settings: PostSettings,
    *,
    external_scores: ExternalScores | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The detections in each video, see postprocess_video. Windows of one video must follow one another."""
    results: dict[str, list[dict[str, Any]]] = {}
    for key, group in groupby(windows, key=lambda window: window.key):
        assert key not in results, f"windows of {key} are not together"
        results[key] = postprocess_video(group, classes, settings, external_scores=external_scores)
    return results
