"""Encodes video files that no data set has, as those of the encoder's data set were packed and encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.features.records import FeatureVideo
from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import SingleVideo, prepare
from pipeline.packing.shard_writer import unique_keys
from pipeline.records import PackedVideo
from tools.features.extraction import FeatureEncoder, VideoEncoder, rejected_entry
from tools.prediction.detect import encoding_spec, processes_at_once
from train.cli import one_line


def encode_files(
    encoder: FeatureEncoder, files: Mapping[str, Path]
) -> Iterator[tuple[FeatureVideo, NDArray[Any] | None]]:
    """Each file, by name, in order, with its features (T, D); one that cannot be used has a reason instead.

    ValueError if the run of the encoder does not say how its videos were packed.
    """
    assert encoder.trained is not None, "a run, which states how videos are packed"
    plain, spec = unique_keys(files), encoding_spec(encoder.trained)
    with closing(prepare(files, spec, workers=processes_at_once())) as prepared:
        for video, packed in prepared:
            keyed = replace(video, key=plain[video.key], source=video.key)
            if video.reject is not None:
                yield rejected_entry(keyed), None
            else:
                yield _encoded(encoder, keyed, packed)


def _encoded(
    encoder: FeatureEncoder, video: PackedVideo, packed: Path
) -> tuple[FeatureVideo, NDArray[Any] | None]:
    source = SingleVideo(video, PackedFile(packed, video.num_frames), ())
    try:
        return next(VideoEncoder(encoder, source, [video]).features())
    except ValueError as error:
        return rejected_entry(replace(video, reject=one_line(error))), None
