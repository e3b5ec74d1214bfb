"""Tells a run in which nothing was learned, in words, while there is time to change something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.annotations import Video
from train.evaluation.chance import chance_map, is_chance
from train.settings import Settings

SHARE = 1 / 3  # of the steps, after which something should have been learned
ENOUGH_STEPS = 600  # on small data sets no run of ours learned from random weights in fewer (LOG.md)
LEARNING_RATE = 5e-3  # what a small backbone learned with from random weights


def learning_warning(
    metrics: Mapping[str, Any],
    ground_truth: Mapping[str, Video],
    settings: Settings,
    *,
    step: int,
    total_steps: int,
) -> str | None:
    """What to say of a validation after `step` of `total_steps`; None: too early, or something is learned.

    metrics: of mean_average_precision. The measure is mAP at the first tIoU, beside that of random segments.
    """
    if step < SHARE * total_steps:
        return None
    found, chance = metrics["mAP"][0], chance_map(ground_truth, protocol=settings.run.protocol)
    if not is_chance(found, chance):
        return None
    tries = "; ".join(remedies(settings, total_steps))
    return (
        f"after {step} of {total_steps} steps nothing was learned: mAP@{metrics['tiou'][0]:g} is "
        f"{found:.4f}, that of random segments {chance:.4f}; try {tries} "
        "(docs/train-on-your-own-videos.md, If it does not learn)"
    )


def remedies(settings: Settings, total_steps: int) -> list[str]:
    """What to try, likeliest first, given the settings of the run."""
    encoder, optimizer, tries = settings.encoder, settings.optimizer, list[str]()
    has_encoder = settings.data.num_features is None
    if (
        has_encoder
        and encoder.weights is None
        and not encoder.frozen
        and optimizer.encoder_lr < LEARNING_RATE
    ):
        rate = f"{LEARNING_RATE:g}"
        tries.append(
            "the rates that random weights need, --set "
            f"optimizer.encoder_lr={rate} --set optimizer.detector_lr={rate}, with backbone r2plus1d_tiny"
        )
    elif has_encoder and encoder.weights is None and encoder.frozen:
        tries.append("--set encoder.frozen=false, for random weights that stay frozen see nothing")
    elif optimizer.detector_lr < LEARNING_RATE / 10:
        tries.append(f"a higher optimizer.detector_lr than {optimizer.detector_lr:g}")
    if total_steps < ENOUGH_STEPS:
        epochs = -(-ENOUGH_STEPS * settings.run.epochs // total_steps)
        tries.append(f"more steps, --set run.epochs={epochs}")
    if has_encoder and encoder.weights is None:
        tries.append("pretrained encoder.weights")
    return [*tries, "and `leantad view`, to see that the annotations fit the videos"]
