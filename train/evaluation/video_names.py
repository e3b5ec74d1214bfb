"""Finds the ground-truth video of each detected one, although the two may be named differently.

`monday morning.mp4` in a CSV, `monday morning` where it was predicted on, `monday_morning_mp4` in a packed
data set and `v_monday morning` among ActivityNet's files are one video. Equal keys are matched first; then
one rule after another, from the strictest to the loosest, is applied to the videos that have no match yet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.packing.shard_writer import unique_keys
from pipeline.packing.video_folder import simplified_name, without_suffix

Names = Mapping[str, Sequence[str]]  # key of a video -> what it was called before it got the key, if known


@dataclass(frozen=True)
class _NamedVideo:
    """A video's names as parts of paths, and the key under which make-shards packs it; None if unknown."""

    paths: tuple[tuple[str, ...], ...]
    packed_key: str | None


Rule = Callable[[_NamedVideo], set[str]]  # names of a video; two videos match when they have one in common


def match_videos(detected: Names, true: Names) -> dict[str, str]:
    """The true key of each detected one; those that have none are left out.

    ValueError, naming both, where one video may be either of two.
    """
    pairs = {key: key for key in detected if key in true}
    if len(pairs) == len(detected):
        return pairs
    packed_keys = unique_keys(true)
    # A detected video without other names may have been detected in a packed data set, under its packed key.
    ours = {key: _named_video(key, names, None if names else key) for key, names in detected.items()}
    theirs = {key: _named_video(key, names, packed_keys[key]) for key, names in true.items()}
    for rule in _rules(theirs):
        ours = {key: video for key, video in ours.items() if key not in pairs}
        matched = set(pairs.values())
        theirs = {key: video for key, video in theirs.items() if key not in matched}
        pairs |= _pairs_by_rule(ours, theirs, rule)
    return pairs


def _pairs_by_rule(
    detected: Mapping[str, _NamedVideo], true: Mapping[str, _NamedVideo], rule: Rule
) -> dict[str, str]:
    """The pairs (detected key, true key) that one rule makes."""
    keys_by_name: dict[str, list[str]] = {}
    for key, video in true.items():
        for name in rule(video):
            keys_by_name.setdefault(name, []).append(key)
    partner: dict[str, str] = {}  # true key -> detected key
    for key, video in detected.items():
        found = sorted({other for name in rule(video) for other in keys_by_name.get(name, ())})
        if len(found) > 1:
            raise ValueError(_ambiguous(key, found, "detected", "the ground truth"))
        if found and partner.setdefault(found[0], key) != key:
            raise ValueError(_ambiguous(found[0], [partner[found[0]], key], "true", "the detections"))
    return {key: other for other, key in partner.items()}


def _ambiguous(key: str, found: list[str], kind: str, where: str) -> str:
    return (
        f"{kind} video {key!r}: may be {found[0]!r} or {found[1]!r} of {where}; "
        "want names that tell them apart, with ending or folder"
    )


def _rules(true: Mapping[str, _NamedVideo]) -> Iterator[Rule]:
    """From strict to loose: path and file name, packed key, the same without ending, then simplified."""
    deepest = max((len(path) for video in true.values() for path in video.paths), default=1)
    depths = range(deepest, 0, -1)
    yield from (partial(_path_ends, depth=depth) for depth in depths)
    yield lambda video: {video.packed_key} if video.packed_key else set()
    yield from (partial(_path_ends, depth=depth, ending=False) for depth in depths)
    yield lambda video: {simplified_name(path[-1]) for path in video.paths} - {""}
    yield lambda video: {simplified_name(video.packed_key)} - {""} if video.packed_key else set()


def _named_video(key: str, names: Sequence[str], packed_key: str | None) -> _NamedVideo:
    paths = {tuple(_parts(name)) for name in names or (key,)}
    return _NamedVideo(tuple(sorted(path for path in paths if path)), packed_key)


def _parts(name: str) -> list[str]:
    """Folders and file name, accents composed: file systems and keyboards write them in two ways."""
    parts = re.split(r"[/\\]", unicodedata.normalize("NFC", name))
    return [part for part in parts if part not in ("", ".", "..")]


def _path_ends(video: _NamedVideo, *, depth: int, ending: bool = True) -> set[str]:
    """The last `depth` parts of each path, with the ending of the file or without."""
    names = ("/".join(path[-depth:]) for path in video.paths if len(path) >= depth)
    return {name if ending else without_suffix(name) for name in names}
