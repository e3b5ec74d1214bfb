"""Prepares one video for its shard: re-encodes it or keeps its bytes, and fits its actions to its length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..annotations import Repair, Video, repair_actions
from ..files import sha256_of
from ..records import PackedVideo
from ..schemas import exact
from .probe import Unreadable, VideoMetadata, probe
from .transcode import EncodingSpec, transcode


@dataclass(frozen=True)
class Job:
    """One video to pack.

    source: its name in the annotations. video: its annotations. file: relative to the folder; None with the
    reason in missing. spec: what to re-encode to; None keeps the bytes.
    """

    key: str
    source: str
    video: Video
    folder: Path
    file: str | None
    missing: str | None
    spec: EncodingSpec | None


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
        metadata = probe(_path(job))
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
    actions, lost = repair_actions(replace(job.video, actions=actions), duration)
    repairs += tuple(repair for repair in lost if repair.kind == "outside")
    if not actions and any(repair.kind == "outside" for repair in repairs):
        first = min(action.start for action in job.video.actions)
        raise Unreadable(
            job.source, f"no action overlaps it: it ends at {duration:.2f} s, they begin at {first:g} s"
        )
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


def _remarks(job: Job, source: VideoMetadata) -> tuple[Repair, ...]:
    """Remarks on a video whose actions all stay: another length than annotated, HDR."""
    remarks = []
    stated, found = job.video.duration, float(source.duration)
    if stated is not None and abs(stated - found) > max(1.0, 0.02 * found):
        remarks.append(Repair(job.source, "duration", f"annotated {stated:.2f} s, decoded {found:.2f} s"))
    if source.transfer is not None:
        remarks.append(Repair(job.source, "hdr", f"{source.transfer} brightness kept, not tone-mapped"))
    return tuple(remarks)


def _encode(job: Job) -> tuple[bytes, VideoMetadata, VideoMetadata]:
    """Bytes to pack, metadata of the source file, metadata of those bytes."""
    path = _path(job)
    if job.spec is not None:
        return transcode(path, job.spec)
    metadata = probe(path)
    _refuse_copy(job, metadata)
    return path.read_bytes(), metadata, metadata


def _path(job: Job) -> Path:
    if job.file is None:
        raise Unreadable(job.source, job.missing or "no file")
    return job.folder / job.file


def _refuse_copy(job: Job, metadata: VideoMetadata) -> None:
    """Raises Unreadable for kept bytes that the training decoder would show wrongly."""
    if job.spec is None and metadata.rotation:
        reason = f"to be shown turned by {metadata.rotation} degrees, which --copy cannot do; re-encode it"
        raise Unreadable(job.source, reason)
    if job.spec is None and not metadata.steady:
        reason = (
            f"frames at uneven times (about {float(metadata.fps):.2f} a second); re-encode it, without --copy"
        )
        raise Unreadable(job.source, reason)
