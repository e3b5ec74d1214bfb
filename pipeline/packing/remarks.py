"""Says what is out of the ordinary in a video that is kept, and what is made of it."""

from __future__ import annotations

from fractions import Fraction

from av.container import InputContainer

from ..container import video_tracks
from ..text import counted
from .clock import Clock, is_steady
from .frames import FrameDecoder

LONG_PAUSE = 1.0  # seconds without a new frame that are worth a remark


def leading_text(decoder: FrameDecoder) -> str:
    """How many frames before the first good one are missing; empty if none is."""
    missing = counted(decoder.leading, "frame")
    return f"{missing} before the first good one cannot be decoded" if decoder.leading else ""


def remarks_of(
    container: InputContainer,
    decoder: FrameDecoder,
    clock: Clock,
    begin: Fraction,
    formats: tuple[str, ...],
) -> tuple[tuple[str, str], ...]:
    """(kind, text) of each; to be asked when the video is read. begin, formats: as in VideoMetadata."""
    found: list[tuple[str, str]] = []
    demuxer = decoder.demuxer
    tracks = [stream.index for stream in video_tracks(container)]
    if len(tracks) > 1:
        number = tracks.index(demuxer.stream.index) + 1
        found.append(("tracks", f"video track {number} of {len(tracks)} is taken, as players do"))
    if decoder.leading:
        found.append(("leading", f"{leading_text(decoder)}: left out"))
    if begin:
        found.append(("begin", f"the first frame is shown at {float(begin):.2f} s, where a player shows it"))
    if decoder.unstamped:
        rate = float(decoder.rate or 0)
        found.append(("unstamped", f"frames have no time stamps; as the stream says, {rate:g} a second"))
    if demuxer.flagged:
        flagged = counted(demuxer.flagged, "packet")
        found.append(("flagged", f"{flagged} marked as damaged; the frames that are there decode"))
    if demuxer.joins:
        found.append(("joined", f"time stamps jump back ({demuxer.joins}): what follows is shown at once"))
    if len(formats) > 1:
        found.append(("pictures", f"they change from {' to '.join(formats)}; scaled to the first size"))
    at, pause = clock.longest()
    if pause > LONG_PAUSE and not is_steady(clock.times, clock.rate()):
        found.append(("pause", f"no new frame for {pause:.2f} s from {at + float(begin):.2f} s on"))
    if decoder.ending is not None:
        kept = f"{counted(clock.count, 'frame')}, {float(clock.end):.2f} s, are kept"
        found.append(("ending", f"{decoder.ending}; {kept}"))
    return tuple(found)
