"""Settings of the data: where the videos are and how clips are taken from them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataSettings(BaseModel):
    """Where the videos are and how clips are taken from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: str  # folder, tar, glob, brace range or URL that make-shards wrote
    train_subset: str = "training"
    val_subset: str = "validation"
    num_clips: int = Field(
        128, ge=1
    )  # clips per window; memory and time grow with it, and so does resolution
    clip_frames: int = Field(16, ge=1)  # frames per clip
    stride_frames: int = Field(1, ge=1)  # frames from one frame of a clip to its next
    resize: int = Field(128, ge=8)  # pixels, short side after decoding
    crop: int = Field(112, ge=8)  # pixels, square; centred in evaluation
    window_seconds: float | None = Field(
        None, gt=0
    )  # seconds; none: the whole video is one window (ActivityNet)
    window_overlap: float = Field(0.5, ge=0, lt=1)  # fraction shared by neighbouring windows
    min_action_overlap: float = Field(
        0.5, ge=0, le=1
    )  # fraction of an action inside a window to count as its truth
    flip: float = Field(
        0.5, ge=0, le=1
    )  # probability of mirroring a training sample; 0 if left and right matter
    random_crop: bool = True  # training crops anywhere instead of in the middle
    color: float = Field(
        0.0, ge=0, lt=1
    )  # largest relative change of brightness, contrast, saturation in training
    shuffle_frames: bool = False  # frames of each clip in random order: what is left is known without motion
    prefetch: int = Field(1, ge=1)  # batches made ready ahead; each costs a batch of clips in memory
    decode_chunk_frames: int = Field(
        512, ge=1
    )  # frames held at source size at once: 512 of 340x256 are 134 MB
    skip_bad: int = Field(
        0, ge=0
    )  # unreadable samples that may be replaced, per process; beyond it the run stops

    @model_validator(mode="after")
    def _crop_fits(self) -> DataSettings:
        if self.crop > self.resize:
            raise ValueError(f"crop: got {self.crop}, want at most resize ({self.resize}), the short side")
        return self
