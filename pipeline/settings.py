"""Settings of the data: where the videos are and how clips are taken from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from settings_group import SettingsGroup

from .limits import Limits

Side = Annotated[int, Field(ge=8)]  # pixels
# Decoders at the same time, unless a setting asks for more. On a GPU each holds some 100 MiB (measured on an
# H100, which has seven), and two decode 6,000 frames a second of 320x256: more than a training step takes.
MAX_WORKERS, MAX_GPU_WORKERS = 8, 2


class DataSettings(SettingsGroup):
    """Where the videos are and how clips are taken from them."""

    shards: str
    """Packed videos: a folder, tar file, glob, brace range or URL of what make-shards wrote; or, with
    data.num_features, a feature file."""

    num_features: int | None = Field(None, ge=1)
    """Channels of the features in data.shards, which is then a feature file (.h5) of extract-features or
    import-features, and there is no encoder; null: data.shards holds videos. See docs/features.md."""

    train_subset: str = "training"
    """Name of the subset to train on, as in the annotations."""

    val_subset: str = "validation"
    """Name of the subset that mAP is measured on, as in the annotations."""

    num_clips: int = Field(128, ge=1)
    """Clips per window, spread evenly over it; with data.num_features: feature steps, between which features
    are interpolated. More find shorter actions; time, and memory for frames, grow with their number."""

    clip_frames: int = Field(16, ge=1)
    """Frames that each clip is made of. More frames show longer movements; time and memory grow with their
    number. Some backbones want a multiple of 2 or 4, see docs/choose-settings.md."""

    stride_frames: int | None = Field(1, ge=1)
    """Frames of the video from one frame of a clip to its next; null: as many as spread the clips' frames
    over the window. 1 takes all of them; with larger strides a clip spans more time at no cost, and shows
    less of fast movements. null suits one long clip a window (Re2TAL)."""

    resize: Side | tuple[Side, Side] = 128
    """Pixels of a frame's short side after decoding; two numbers: width and height, whatever its shape.
    Larger shows things larger in the square of data.crop, and less around them. TSP's weights were trained
    with [171, 128], which shows 65 % of the width of a 16:9 video in a crop of 112, 128 shows 49 %."""

    crop: int = Field(112, ge=8)
    """Pixels of each side of the square that the network sees, at most data.resize. Larger squares show
    smaller things; time and memory grow with the area. VideoMAE wants a multiple of 16."""

    window_seconds: float | None = Field(None, gt=0)
    """Seconds of video that the detector sees at once; null: the whole video. Long videos need windows, at
    least twice as long as nearly all actions; shorter ones place actions more precisely."""

    window_overlap: float = Field(0.5, ge=0, lt=1)
    """Share of a window that the next one repeats. With 0.5 an action of up to half a window lies wholly in
    one of them; more overlap means more windows, and so more time. In evaluation a frame that two windows
    show is decoded once, and a clip (half of all, with 0.5 and an even data.num_clips) encoded once."""

    pad_short_videos: bool = False
    """Whether a video shorter than data.window_seconds is seen in a window of that length all the same, whose
    empty end is masked: the detector neither sees nor reports it. true keeps the seconds of a step equal in
    all videos, as ActionFormer does; false stretches short videos, and so places their actions finer."""

    min_action_overlap: float = Field(0.5, ge=0, le=1)
    """Share of an action that must lie inside a window to be trained on there, cut off at the window's ends.
    Smaller trains on more fragments of actions; if the window is the whole video, every action counts."""

    min_action_seconds: float = Field(0.0, ge=0)
    """Seconds below which an action is left out of training, by its whole length; evaluation counts all. Too
    short ones, below half a step, only make the loss noisier; 0 leaves none out."""

    truncate_to: float = Field(1.0, gt=0, le=1)
    """Least share of its window that a training sample shows, drawn anew each time, as is the place; at least
    one action keeps data.min_action_overlap of its length. Smaller makes few videos go further, and actions
    longer in steps (with data.pad_short_videos: not longer). 1: all of it; ActionFormer takes 0.9."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability that a training sample is mirrored, left to right. Set it to 0 if a mirrored video would
    have another label, as a slide to the left would."""

    random_crop: bool = True
    """Whether training cuts the square anywhere in the picture: it makes few videos go further. false: in the
    middle, as evaluation does."""

    color: float = Field(0.0, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation in training: 0 changes nothing, 0.2 up
    to 20 %. More makes the network depend less on light and camera."""

    least_area: float = Field(1.0, gt=0, le=1)
    """Least share of the picture's area that training cuts out and resizes to the square, one part for each
    window (random resized crop); 1: data.resize and data.crop instead. Smaller makes the network depend less
    on size and place; 0.08 is usual for images, too little where what happens is small."""

    blur: float = Field(0.0, ge=0, le=10)
    """Largest standard deviation in pixels of the blur of a training window, drawn from 0 to it; 0: none.
    More makes the network depend less on sharp detail, such as of a better camera."""

    shuffle_frames: bool = False
    """Whether the frames of each clip are put in random order. For experiments: what is still found then is
    found without motion."""

    prefetch: int = Field(1, ge=1)
    """Batches that are decoded ahead of the one in use. More hide uneven decoding times; each costs the
    memory of a batch of clips, on the host."""

    decoder: Literal["auto", "gpu", "cpu"] = "auto"
    """What decodes videos: gpu is the GPU's decoder and nothing else, cpu the processor, auto the GPU for all
    that it decodes right. A line on stderr names what goes to the CPU instead, and why."""

    decode_workers: int | None = Field(None, ge=1)
    """Videos, or parts of one, that are decoded at the same time; null: one for each decoder of the GPU, at
    most 2, or for each core of the CPU, at most 8. More are faster while there are decoders or cores, and on
    a GPU each holds some 100 MiB; batches stay the same."""

    decode_chunk_mib: int = Field(128, ge=1)
    """MiB of frames at source size that all decoders together hold, but at least one frame each. Fewer need
    less memory and more time (128 MiB are 514 frames of 340x256 pixels, or 21 of 1920x1080)."""

    skip_bad: int = Field(0, ge=0)
    """Unreadable samples that each process reports and replaces, by others in training and by black clips in
    evaluation. One more stops the run: 0 stops at the first."""

    limits: Limits = Limits()
    """Bounds on what a video may cost."""

    @field_validator("resize", mode="before")
    @classmethod
    def _one_number_or_two(cls, value: object) -> object:
        """One message, not one for each of the two forms."""
        sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
        if not all(isinstance(side, int) and not isinstance(side, bool) and side >= 8 for side in sides):
            raise ValueError("want pixels, at least 8: one number, or [width, height]")
        return value

    @model_validator(mode="after")
    def _crop_fits(self) -> DataSettings:
        if self.crop > self.short_side:
            raise ValueError(
                f"crop: got {self.crop}, want at most resize ({self.short_side}), the short side"
            )
        return self

    @model_validator(mode="after")
    def _padding_has_a_length(self) -> DataSettings:
        if self.pad_short_videos and self.window_seconds is None:
            raise ValueError("pad_short_videos: got true without data.window_seconds, want it: the length")
        return self

    @property
    def short_side(self) -> int:
        """Pixels of the short side after decoding."""
        return self.resize if isinstance(self.resize, int) else min(self.resize)


def frames_per_chunk(height: int, width: int, mib: float) -> int:
    """How many RGB frames of uint8 fit into so many MiB, at least one. height, width: pixels."""
    return max(1, int(mib * 2**20) // max(1, height * width * 3))
