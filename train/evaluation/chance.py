"""The mAP of chance: segments as long as true actions, at random places with random labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.annotations import Action, Video
from pipeline.order import stable_seed
from train.detections import Results
from train.evaluation.average_precision import mean_average_precision

DETECTIONS = 100  # in each video, as many as a detector gives by default (post.max_detections)
DRAWS = 3  # their mean is what is returned: one draw scatters where there are few actions


def random_detections(
    ground_truth: Mapping[str, Video], *, seed: int, actions: Sequence[Action] | None = None
) -> Results:
    """For each video 100 segments with the length and the label of actions drawn at random.

    actions: to draw from, those of training for one; None: those of all these videos.
    """
    if actions is None:
        actions = [action for video in ground_truth.values() for action in video.actions]
    results: dict[str, list[dict[str, Any]]] = {key: [] for key in ground_truth}
    if not actions:
        return results
    for key, video in ground_truth.items():
        rng = np.random.Generator(np.random.PCG64(stable_seed("chance", seed, key)))
        end = video.duration or max((action.end for action in video.actions), default=0.0)
        drawn = [actions[i] for i in rng.integers(len(actions), size=DETECTIONS)]
        lengths = np.minimum([action.end - action.start for action in drawn], end)
        starts = rng.uniform(0, 1, DETECTIONS) * (end - lengths)
        scores = np.sort(rng.uniform(0, 1, DETECTIONS))[::-1]
        results[key] = [
            {"label": action.label, "segment": [start, start + length], "score": score}
            for action, start, length, score in zip(
                drawn, starts.tolist(), lengths.tolist(), scores.tolist(), strict=True
            )
        ]
    return results


def chance_map(ground_truth: Mapping[str, Video], *, protocol: str) -> float:
    """mAP of such detections at the first tIoU of the protocol, in [0, 1]; a function of its inputs alone.

    ValueError where no video has an action.
    """
    draws = (random_detections(ground_truth, seed=seed) for seed in range(DRAWS))
    found = [mean_average_precision(ground_truth, draw, protocol=protocol)["mAP"][0] for draw in draws]
    return float(np.mean(found))


def is_chance(found: float, chance: float) -> bool:
    """Whether an mAP is hardly more than that of chance: less than a quarter of what it could be is added.

    "Could be": as much again as chance, or up to 1 where that is less.
    """
    return found <= chance + 0.25 * min(chance, 1 - chance)
