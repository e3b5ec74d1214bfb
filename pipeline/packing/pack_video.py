"""Prepares one video for its shard: re-encodes it or keeps its bytes, and fits its actions to its length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av

from ..annotations import Action, Repair, Video, repair_actions
from ..container import open_video
from ..files import sha256_of
from ..limits import check_bytes, check_count
from ..records import PackedVideo
from ..schemas import exact
from .keep import why_not_kept
from .probe import Unreadable, VideoMetadata, probe
from .transcode import EncodingSpec, transcode


@dataclass(frozen=True)
class Job:
    """One video to pack.

    source: its name in the annotations. video: its annotations. file: relative to the folder; None with the
    reason in missing. spec: what to re-encode to; None keeps the bytes. strict: reject a video of which
    frames are missing. way_out: what to do about a file whose bytes cannot be kept.
    """

    key: str
    source: str
    video: Video
    folder: Path
    file: str | None
    missing: str | None
    spec: EncodingSpec | None
    strict: bool = False
    way_out: str = "pack it without --copy"


@exact
@dataclass(frozen=True)
class PackResult:
    """A video that was packed (reject None; not yet in a shard) or rejected, and its repairs."""

    video: PackedVideo
    repairs: tuple[Repair, ...]


def pack_video(job: Job) -> tuple[PackResult, bytes]:
    """Pack one video; returns the result and the encoded bytes (none when rejected)."""
    try:
        data, source, packed = _encode(job)
        return _fit_actions(job, source, packed, sha256_of(data)), data
    except Unreadable as error:
        return reject(job, error.reason), b""


def check_video(job: Job) -> PackResult:
    """Decode one file whole and fit the actions to it; nothing is encoded."""
    try:
        _refuse_beyond_limits(job)
        metadata = probe(_path(job), strict=job.strict)
        _refuse_copy(job, metadata)
        return _fit_actions(job, metadata, metadata, None)
    except Unreadable as error:
        return reject(job, error.reason)


def reject(job: Job, reason: str) -> PackResult:
    """The result of a video that cannot be packed; its actions stay, so that evaluation counts them."""
    actions, repairs = repair_actions(job.video, None)
    video = PackedVideo(
        key=job.key,
        subset=job.video.subset,
        duration=job.video.duration,
        fps=0.0,
        num_frames=0,
        width=0,
        height=0,
        codec="",
        actions=actions,
        shard=None,
        reject=" ".join(reason.split()),
        source=job.source,
        file=job.file,
    )
    return PackResult(video, repairs)


def _fit_actions(job: Job, source: VideoMetadata, packed: VideoMetadata, sha256: str | None) -> PackResult:
    """Fit the actions to the packed video. Raises Unreadable when all of them lie outside it."""
    duration = float(packed.duration)
    actions, repairs = repair_actions(job.video, float(source.duration))
    # Packing rounds the length to a frame: ends follow without a repair, an action that vanishes has one.
    fitted, lost = repair_actions(replace(job.video, actions=actions), duration)
    repairs += tuple(repair for repair in lost if repair.kind != "clipped")
    if not fitted and any(repair.kind == "outside" for repair in repairs):
        raise Unreadable(job.source, _no_action_text(job.video.actions, actions, source, packed))
    actions = fitted
    video = PackedVideo(
        key=job.key,
        subset=job.video.subset,
        duration=duration,
        fps=float(packed.fps),
        num_frames=packed.num_frames,
        width=packed.width,
        height=packed.height,
        codec=packed.codec,
        actions=actions,
        shard=None,
        reject=None,
        source=job.source,
        sha256=sha256,
        file=job.file,
        pix_fmt=packed.pix_fmt,
    )
    return PackResult(video, repairs + _remarks(job, source))


def _no_action_text(
    annotated: Sequence[Action], in_source: Sequence[Action], source: VideoMetadata, packed: VideoMetadata
) -> str:
    """Why no action is left of those annotated, given those that lie in the source."""
    if in_source:
        first = min(action.start for action in in_source)
        return (
            f"no action is left in it: packed at {float(packed.fps):g} frames a second it ends at "
            f"{float(packed.duration):.4g} s, they begin at {first:.4g} s; pack with a higher --fps"
        )
    first = min(action.start for action in annotated if action.end > action.start)
    return f"no action overlaps it: it ends at {float(source.duration):.2f} s, they begin at {first:g} s"


def _remarks(job: Job, source: VideoMetadata) -> tuple[Repair, ...]:
    """Remarks on a video: what is out of the ordinary in its file, another length than annotated, HDR."""
    remarks = [Repair(job.source, kind, text) for kind, text in source.remarks]
    stated, found = job.video.duration, float(source.duration)
    if stated is not None and abs(stated - found) > max(1.0, 0.02 * found):
        remarks.append(Repair(job.source, "duration", f"annotated {stated:.2f} s, decoded {found:.2f} s"))
    if source.transfer is not None:
        remarks.append(Repair(job.source, "hdr", f"{source.transfer} brightness kept, not tone-mapped"))
    return tuple(remarks)


def _encode(job: Job) -> tuple[bytes, VideoMetadata, VideoMetadata]:
    """Bytes to pack, metadata of the source file, metadata of those bytes."""
    path = _path(job)
    _refuse_beyond_limits(job)
    if job.spec is not None:
        return transcode(path, job.spec, strict=job.strict)
    metadata = probe(path, strict=job.strict)
    _refuse_copy(job, metadata)
    return path.read_bytes(), metadata, metadata


def _refuse_beyond_limits(job: Job) -> None:
    """Raises Unreadable for a video that would cost more than the limits allow; nothing is decoded yet."""
    path = _path(job)
    try:
        if job.spec is None and path.is_file():
            check_bytes(path.stat().st_size)
        _check_packets(path)
    except ValueError as error:
        if isinstance(error.__cause__, av.FFmpegError) or not path.stat().st_size:
            return  # not a video: FrameReader says what is wrong
        raise Unreadable(job.source, str(error)) from None


def _check_packets(path: Path) -> None:
    """ValueError if a video has more packets than may be frames; nothing is decoded."""
    with open_video(path) as (container, stream):
        if stream.frames:  # checked when it was opened
            return
        try:
            for count, _ in enumerate(container.demux(stream)):
                check_count(count)  # the last of a file is empty
        except av.FFmpegError:
            return  # who decodes it says what is wrong


def _path(job: Job) -> Path:
    if job.file is None:
        raise Unreadable(job.source, job.missing or "no file")
    return job.folder / job.file


def _refuse_copy(job: Job, metadata: VideoMetadata) -> None:
    """Raises Unreadable for kept bytes that the training decoder would show wrongly."""
    reason = why_not_kept(_path(job), metadata) if job.spec is None else None
    if reason is not None:
        raise Unreadable(job.source, f"{reason}, which bytes that are kept cannot change; {job.way_out}")
