"""One video, one name: which video of a ground truth a detected one is, however the two are spelled.

`monday morning.mp4` in a CSV, `monday morning` where it was predicted on, `monday_morning_mp4` in a packed
data set and `v_monday morning` among ActivityNet's files are one video. Equal keys are matched first; rule
after rule, from the strictest to the loosest, then looks at the videos that are left.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from pipeline.packing.shard_writer import unique_keys
from pipeline.packing.video_folder import VIDEO_SUFFIXES

Names = Mapping[str, Sequence[str]]  # key of a video -> what it was called before it got the key, if known


@dataclass(frozen=True)
class _Spelled:
    """A video's names as parts of paths, and the key under which make-shards packs it; None if unknown."""

    paths: tuple[tuple[str, ...], ...]
    packed: str | None


Rule = Callable[[_Spelled], set[str]]  # what is compared of a video


def match_videos(detected: Names, true: Names) -> dict[str, str]:
    """The true key of each detected one; those that have none are left out.

    ValueError, naming both, where one video may be either of two.
    """
    pairs = {key: key for key in detected if key in true}
    if len(pairs) == len(detected):
        return pairs
    packed = unique_keys(true)
    left = {key: _spelled(key, names, None if names else key) for key, names in detected.items()}
    free = {key: _spelled(key, names, packed[key]) for key, names in true.items()}
    for rule in _rules(free):
        left = {key: video for key, video in left.items() if key not in pairs}
        taken = set(pairs.values())
        free = {key: video for key, video in free.items() if key not in taken}
        pairs |= _joined(left, free, rule)
    return pairs


def _joined(left: Mapping[str, _Spelled], free: Mapping[str, _Spelled], rule: Rule) -> dict[str, str]:
    """The pairs that one rule makes."""
    places: dict[str, list[str]] = {}
    for key, video in free.items():
        for spelling in rule(video):
            places.setdefault(spelling, []).append(key)
    partner: dict[str, str] = {}  # true key -> detected key
    for key, video in left.items():
        found = sorted({true for spelling in rule(video) for true in places.get(spelling, ())})
        if len(found) > 1:
            raise ValueError(_unclear(key, found, "detected", "the ground truth"))
        if found and partner.setdefault(found[0], key) != key:
            raise ValueError(_unclear(found[0], [partner[found[0]], key], "true", "the detections"))
    return {key: true for true, key in partner.items()}


def _unclear(key: str, found: list[str], kind: str, where: str) -> str:
    return (
        f"{kind} video {key!r}: may be {found[0]!r} or {found[1]!r} of {where}; "
        "want names that tell them apart, with ending or folder"
    )


def _rules(true: Mapping[str, _Spelled]) -> Iterator[Rule]:
    """From strict to loose: path and file name, packed key, the same without ending, without all frills."""
    deepest = max((len(path) for video in true.values() for path in video.paths), default=1)
    depths = range(deepest, 0, -1)
    yield from (partial(_tails, depth=depth) for depth in depths)
    yield lambda video: {video.packed} if video.packed else set()
    yield from (partial(_tails, depth=depth, ending=False) for depth in depths)
    yield lambda video: {_bare(path[-1]) for path in video.paths} - {""}
    yield lambda video: {_bare(video.packed)} - {""} if video.packed else set()


def _spelled(key: str, names: Sequence[str], packed: str | None) -> _Spelled:
    paths = {tuple(_parts(name)) for name in names or (key,)}
    return _Spelled(tuple(sorted(path for path in paths if path)), packed)


def _parts(name: str) -> list[str]:
    """Folders and file name, accents composed: file systems and keyboards write them in two ways."""
    parts = re.split(r"[/\\]", unicodedata.normalize("NFC", name))
    return [part for part in parts if part not in ("", ".", "..")]


def _tails(video: _Spelled, *, depth: int, ending: bool = True) -> set[str]:
    """The last `depth` parts of each path, with the ending of the file or without."""
    tails = ("/".join(path[-depth:]) for path in video.paths if len(path) >= depth)
    return {tail if ending else _without_ending(tail) for tail in tails}


@cache
def _ending(marks: str) -> re.Pattern[str]:
    endings = "|".join(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
    return re.compile(rf"(?<=.)[{marks}]({endings})\Z", re.IGNORECASE)


def _without_ending(name: str, marks: str = ".") -> str:
    return _ending(marks).sub("", name)


def _bare(name: str) -> str:
    """Letters and digits without accents, the ending (also as a key has it) and ActivityNet's prefix."""
    decomposed = unicodedata.normalize("NFKD", _without_ending(name, "._"))
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    if not re.fullmatch(r"[\w-]+", letters):
        letters = re.sub(r"[^\w-]+", "_", letters).strip("_")
    return letters.removeprefix("v_")
