"""The whole network: uint8 clips of videos in, the detection loss or predictions out.

Encoder and detector as in ETAD (Liu et al., CVPRW 2023): every clip is encoded, the sampled ones with a
gradient, and the detector reads the features of the whole video. One forward and one backward train both
(ETAD takes two optimizer steps).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.backbones import build_backbone
from model.backbones.backbone import Backbone
from model.backbones.batch_norm import freeze_batch_norms
from model.detector.build import build_detector
from model.detector.detector import Prediction
from model.detector.settings import DetectorSettings
from model.deterministic import average_steps
from model.encode import encode_some, sampled_encode
from model.late_choice import LateChoice, late_choice
from model.rewire import recompute_modules
from model.rewire_backbone import is_prepared, rewire_backbone
from model.sampling import num_kept, sample_clips, sample_labelled_clips
from model.settings import EncoderSettings


def _frozen_names(backbone: Backbone, settings: EncoderSettings) -> list[str]:
    """The modules that encoder.frozen_stages freezes; ValueError if there are not so many stages."""
    number = settings.frozen_stages
    if number < 0:
        return []
    stem, *stages = backbone.parts()
    if number > len(stages):
        raise ValueError(
            f"encoder.frozen_stages: got {number}, want -1 to {len(stages)}, the stages of "
            f"{settings.backbone}; encoder.frozen=true freezes all of it"
        )
    return [name for part in (stem, *stages[:number]) for name in part]


class ClipEncoder(nn.Module):
    """A backbone that takes uint8 clips as they are decoded and returns features per time step.

    Casting and normalising happen here, chunk by chunk: a video never exists in floating point as a whole.
    """

    def __init__(self, settings: EncoderSettings):
        super().__init__()
        self.backbone = build_backbone(settings.backbone, settings.temporal)
        self.num_features = self.backbone.num_features
        self.steps_per_clip = settings.steps_per_clip
        self.batch_norm_in_eval = not settings.train_batch_norm
        # Plain attributes, not buffers: they stay float32 when the engine casts the module to bf16.
        self.mean = torch.tensor(self.backbone.mean).view(1, 3, 1, 1, 1) * 255
        self.std = torch.tensor(self.backbone.std).view(1, 3, 1, 1, 1) * 255
        if settings.reversible:
            rewire_backbone(
                self.backbone,
                beta=settings.beta_of_run.end,
                fixed_point_states=settings.fixed_point_states,
                leapfrog=settings.leapfrog,
                slice_bytes=None if settings.slice_mib is None else settings.slice_mib * 2**20,
            )
        elif is_prepared(self.backbone) and not self.backbone.stage_names:  # i3d can only be recomputed
            recompute_modules(self.backbone)
        stages = _frozen_names(self.backbone, settings)
        self.frozen_names = [""] if settings.frozen else stages  # "": the whole backbone
        for name in self.frozen_names:
            self.backbone.get_submodule(name).requires_grad_(False)

    def train(self, mode: bool = True) -> ClipEncoder:
        """As nn.Module.train, but what is frozen stays as it is in evaluation, without drop-path or dropout.

        So does batch norm, which keeps its statistics unless the settings train it.
        """
        super().train(mode)
        if self.batch_norm_in_eval:
            freeze_batch_norms(self)
        for name in self.frozen_names:
            self.backbone.get_submodule(name).eval()
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """clips: (n, C, L, H, W), uint8 or float in 0..255. Returns (n, D, t) features."""
        dtype = next(self.backbone.parameters()).dtype
        mean, std = (x.to(clips.device, non_blocking=True) for x in (self.mean, self.std))
        pixels = (clips.float() - mean) / std
        features = self.backbone.pool(self.backbone(pixels.to(dtype)))  # (n, D, t)
        if self.steps_per_clip is None:
            return features
        return average_steps(features, self.steps_per_clip)  # (n, D, steps_per_clip)


def check_training(
    gt_segments: Sequence[Tensor] | None,
    gt_labels: Sequence[Tensor] | None,
    generator: torch.Generator | None,
) -> tuple[Sequence[Tensor], Sequence[Tensor], torch.Generator]:
    """What a loss needs beside the videos; ValueError if one of the three is missing."""
    if gt_segments is None or gt_labels is None or generator is None:
        training = {"gt_segments": gt_segments, "gt_labels": gt_labels, "generator": generator}
        missing = next(name for name, value in training.items() if value is None)
        raise ValueError(
            f"network: {missing}: got None with ground truth, want all of {', '.join(training)} for the "
            "loss, or neither gt_segments nor gt_labels for a prediction"
        )
    return gt_segments, gt_labels, generator


class Network(nn.Module):
    """Encoder and detector, trained by one loss."""

    def __init__(self, encoder: EncoderSettings, detector: DetectorSettings, *, num_classes: int):
        super().__init__()
        self.settings = encoder
        self.clip_ratio = encoder.clip_ratio  # of the next step; a run with a schedule sets it
        self.encoder = ClipEncoder(encoder)
        self.detector = build_detector(
            detector, num_features=self.encoder.num_features, num_classes=num_classes
        )

    def forward(
        self,
        clips: Tensor,
        gt_segments: Sequence[Tensor] | None = None,
        gt_labels: Sequence[Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
        video_shares: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]] | Prediction:
        """clips: (B, N, C, L, H, W) uint8, as `sampled_encode` takes them; gt_segments, gt_labels: per video
        (A, 2) feature steps and (A,), on the CPU, where the proposals are drawn (from a GPU they would be
        copied back, which waits for it). video_shares: (B,) on the CPU, the share of each window that its
        video fills; the rest is masked. None: all of all.

        With ground truth: the loss and its detached parts; `generator` (CPU) draws clips and proposals.
        Without: Prediction. Both go through forward: ZeRO-3 gathers its parameters in the hooks of this very
        call. Raises ValueError if ground truth comes without its other half or without a generator.
        """
        if gt_segments is None and gt_labels is None:
            return self.detector.detect(self.encode(clips, kept=None), video_shares)
        gt_segments, gt_labels, generator = check_training(gt_segments, gt_labels, generator)
        kept = self._choose_clips(clips, gt_segments, generator)
        features = self.encode(clips, kept=kept)  # (B, D, N * t)
        if video_shares is None:
            return self.detector.loss(features, gt_segments, gt_labels, generator=generator)
        return self.detector.masked_loss(features, gt_segments, gt_labels, video_shares, generator=generator)

    def _choose_clips(
        self, clips: Tensor, gt_segments: Sequence[Tensor], generator: torch.Generator
    ) -> Tensor | LateChoice:
        """The clips of each video with a gradient, (B, M), or who chooses them once they are encoded."""
        strategy, ratio = self.settings.clip_sampling, self.clip_ratio
        num_videos, num_clips = clips.shape[:2]
        if strategy == "random" or strategy == "uniform" or strategy == "block":
            return sample_clips(num_videos, num_clips, ratio, strategy=strategy, generator=generator)
        if strategy == "labels":
            return sample_labelled_clips(
                num_clips, ratio, gt_segments, num_steps=self.detector.num_steps, generator=generator
            )
        return late_choice(strategy, num_kept(num_clips, ratio), generator=generator)

    def encode(self, clips: Tensor, *, kept: Tensor | LateChoice | None) -> Tensor:
        """(B, D, N * t) features of all clips; only the `kept` ones, if any, pass a gradient on."""
        return sampled_encode(
            self.encoder,
            clips,
            kept,
            clips_per_forward=self.settings.clips_per_forward,
            gradient_scale=self.settings.gradient_scale,
            keep_graphs=self.settings.keep_graphs,
        )

    def encode_some(self, clips: Tensor, numbers: Tensor) -> Tensor:
        """(M, D, t) features, without a graph, of the clips of these rising numbers (M,) among all B * N."""
        clips_per_forward = self.settings.clips_per_forward
        return encode_some(self.encoder, clips.flatten(0, 1), numbers, clips_per_forward=clips_per_forward)
