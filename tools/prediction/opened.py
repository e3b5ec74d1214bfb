"""Files that are being decoded: the next one while the network is busy with the last window of this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.packets_file import PackedFile
from pipeline.packing.prepare import SUBSET, PreparedFiles, SingleVideo
from pipeline.records import PackedVideo
from train.cli import one_line

if TYPE_CHECKING:
    from pipeline.batch import Batch
    from pipeline.loader import Loader
    from train.inference import TrainedNetwork


@dataclass
class OpenedVideo:
    """A video whose first window is being decoded; loader: None if it cannot be read, for this reason.

    look_ahead: called when its last window is decoded.
    """

    video: PackedVideo
    loader: Loader | None
    reason: str | None
    look_ahead: Callable[[], None]

    def batches(self) -> Iterator[Batch]:
        """Its windows, one at a time: as many clips as go through the encoder at once are enough for it."""
        assert self.loader is not None, self.reason
        for number, batch in enumerate(self.loader, 1):
            if number == self.loader.steps_per_epoch:
                self.look_ahead()
            yield batch
            del batch  # or two would be held while the next is waited for

    def close(self) -> None:
        """Stop decoding."""
        if self.loader is not None:
            self.loader.close()


def in_turn(
    trained: TrainedNetwork, prepared: PreparedFiles, *, remark: Callable[[str], None]
) -> Iterator[OpenedVideo]:
    """Each file in turn, opened; the next one as soon as the last window of this one is decoded.

    remark: called with the loader's lines.
    """
    upcoming: list[OpenedVideo] = []
    errors: list[ValueError] = []  # of the next file, which must not count as one of this file

    def open_next() -> None:
        for video, packed in islice(prepared, 1):
            upcoming.append(open_video(trained, video, packed, look_ahead=look_ahead, remark=remark))

    def look_ahead() -> None:
        # no thread decodes at this moment, so that the next encoder can be forked
        if prepared.is_next_ready() and not upcoming:
            try:
                open_next()
            except ValueError as error:
                errors.append(error)

    try:
        while True:
            if errors:
                raise errors[0]
            if not upcoming:
                open_next()
            if not upcoming:
                return
            with closing(upcoming.pop()) as opened:
                yield opened
    finally:
        for opened in upcoming:
            opened.close()


def open_video(
    trained: TrainedNetwork,
    video: PackedVideo,
    packed: Path,
    *,
    look_ahead: Callable[[], None],
    remark: Callable[[str], None],
) -> OpenedVideo:
    """Begin to decode a video; packed: the file as prepare encoded it."""
    from train.inference import evaluation_loader

    if video.reject is not None:
        return OpenedVideo(video, None, video.reject, look_ahead)
    try:
        source = SingleVideo(video, PackedFile(packed, video.num_frames), trained.classes)
        loader = evaluation_loader(trained, source, subset=SUBSET, batch_size=1, remark=remark)
        loader.begin()
    except ValueError as error:
        return OpenedVideo(video, None, reason_of(error, video), look_ahead)
    return OpenedVideo(video, loader, None, look_ahead)


def reason_of(error: ValueError, video: PackedVideo) -> str:
    """Why a video cannot be read, on one line, without its name, which the caller gives."""
    return one_line(error).removeprefix(f"{video.file}: video {video.key}: ")
