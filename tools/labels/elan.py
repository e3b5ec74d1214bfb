"""ELAN's annotation files (.eaf), as the schema EAFv3.0.xsd of the Max Planck Institute describes them.

An ALIGNABLE_ANNOTATION names two TIME_SLOTs, in milliseconds; a slot within a divided annotation may have no
value, and is then shown evenly between its neighbours. A REF_ANNOTATION has the times of what it refers to;
several in a chain (PREVIOUS_ANNOTATION) share them evenly. The value of an annotation is the label, the name
of its tier where it is empty. TIME_ORIGIN says where in the media ELAN's zero is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from urllib.parse import unquote
from xml.etree.ElementTree import Element, SubElement

from pipeline.text import counted, short

from .labelled import (
    NO_TIME,
    LabelFile,
    LabelledVideo,
    Loss,
    Report,
    TimedLabel,
    by_start,
    disjoint,
    label_names,
    lose_scores,
    timed,
)
from .text_files import number
from .xml_files import attribute, parse_xml, xml_text

UNITS = {"milliseconds": Fraction(1000), "PAL-frames": Fraction(25), "NTSC-frames": Fraction(30000, 1001)}
OTHER_MEDIA = Loss("further media file", "further media files", "labels are those of the first video")
CIRCLE = Loss("reference", "references", "they lead to no annotation with times")
SCHEMA_ATTRIBUTE = "{http://www.w3.org/2001/XMLSchema-instance}noNamespaceSchemaLocation"
SCHEMA = "http://www.mpi.nl/tools/elan/EAFv3.0.xsd"
Span = tuple[float, float]  # seconds


@dataclass
class Tiers:
    """The annotations of a document: (id, tier, text) in order, their times, and what refers to what.

    rows: those of a tier that refer to one annotation, {(tier, parent): {id: the one before}}; shares: which
    of how many one is.
    """

    texts: list[tuple[str, str, str]] = field(default_factory=list)
    spans: dict[str, Span] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    shares: dict[str, tuple[int, int]] = field(default_factory=dict)

    def divide(self) -> None:
        """Count who shares the times of an annotation, once all are there."""
        for row in self.rows.values():
            self.shares.update({name: (index, len(row)) for index, name in enumerate(_in_order(row))})

    def span(self, name: str) -> Span | None:
        """The times of an annotation, through what it refers to; None where that leads nowhere."""
        way: dict[str, None] = {}
        while name not in self.spans:
            if name in way or name not in self.parents:
                return None
            way[name] = None
            name = self.parents[name]
        start, end = self.spans[name]
        for name in reversed(way):
            index, count = self.shares[name]
            share = (end - start) / count
            start, end = start + index * share, start + (index + 1) * share
        return start, end


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The annotations of the tiers that are wanted, all without --tier."""
    root = parse_xml(file.path, file.text)
    if root.tag != "ANNOTATION_DOCUMENT":
        raise ValueError(
            f"{file.path}: its root is {short(root.tag)}, want ANNOTATION_DOCUMENT, which ELAN writes"
        )
    name, origin = media_of(file, root, report)
    tiers = tiers_of(file, root, report)
    file.check_tiers(tier.get("TIER_ID", "") for tier in root.iter("TIER"))
    labels: list[TimedLabel] = []
    used: dict[str, int] = {}
    for annotation, tier, text in tiers.texts:
        if not file.wants(tier):
            continue
        span = tiers.span(annotation)
        if span is None:
            report.lose(CIRCLE if annotation in tiers.parents else NO_TIME)
            continue
        found = timed(report, span[0] + origin, span[1] + origin, text.strip() or tier)
        labels += found
        used[tier] = used.get(tier, 0) + len(found)
    report.remark_sources("tier", used)
    return [LabelledVideo(name, by_start(labels))]


def media_of(file: LabelFile, root: Element, report: Report) -> tuple[str, float]:
    """(path, seconds at ELAN's zero) of the first video, or media; the file's own name if there is none."""
    media = list(root.iter("MEDIA_DESCRIPTOR"))
    media.sort(key=lambda element: not element.get("MIME_TYPE", "").startswith("video"))
    report.lose(OTHER_MEDIA, len(media) - 1)
    for element in media:
        url = element.get("MEDIA_URL") or element.get("RELATIVE_MEDIA_URL") or ""
        name = unquote(url.removeprefix("file://"))
        if name:
            origin = number(f"{file.path}: TIME_ORIGIN", element.get("TIME_ORIGIN") or "0")
            return name, origin / 1000
    stated = next((element.get("MEDIA_FILE") or "" for element in root.iter("HEADER")), "")
    return stated or file.video_name, 0.0


def tiers_of(file: LabelFile, root: Element, report: Report) -> Tiers:
    """The annotations of all tiers; a time without value is taken from its neighbours, and counted."""
    header = root.find("HEADER")
    unit = (None if header is None else header.get("TIME_UNITS")) or "milliseconds"
    if unit not in UNITS:
        raise ValueError(f"{file.path}: TIME_UNITS is {unit[:40]!r}, want one of: {', '.join(UNITS)}")
    slots: dict[str, float | None] = {}
    for slot in root.iter("TIME_SLOT"):
        value = slot.get("TIME_VALUE")
        time = None if not value else number(f"{file.path}: TIME_VALUE", value) / float(UNITS[unit])
        slots[attribute(file.path, slot, "TIME_SLOT_ID")] = time
    tiers = Tiers()
    for tier in root.iter("TIER"):
        _add_tier(file, tier, slots, tiers, report)
    tiers.divide()
    return tiers


def _add_tier(
    file: LabelFile, tier: Element, slots: dict[str, float | None], tiers: Tiers, report: Report
) -> None:
    tier_name = attribute(file.path, tier, "TIER_ID")
    ends: list[tuple[str, str, str]] = []  # id, first and second slot
    for element in tier.iter():
        if element.tag not in ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION"):
            continue
        name = attribute(file.path, element, "ANNOTATION_ID")
        tiers.texts.append((name, tier_name, element.findtext("ANNOTATION_VALUE") or ""))
        if element.tag == "REF_ANNOTATION":
            parent = attribute(file.path, element, "ANNOTATION_REF")
            tiers.parents[name] = parent
            previous = element.get("PREVIOUS_ANNOTATION") or ""
            tiers.rows.setdefault((tier_name, parent), {})[name] = previous
        else:
            first, second = (attribute(file.path, element, f"TIME_SLOT_REF{side}") for side in "12")
            ends.append((name, first, second))
    times = _with_neighbours(ends, slots, report)
    for name, first, second in ends:
        start, end = times.get(first), times.get(second)
        if start is not None and end is not None:
            tiers.spans[name] = (start, end)


def _in_order(row: dict[str, str]) -> list[str]:
    """The annotations of a row, each behind the one before it, in whatever order the file has them."""
    followers: dict[str, list[str]] = {}
    for name, previous in row.items():
        followers.setdefault(previous if previous in row else "", []).append(name)
    ordered: dict[str, None] = {}
    ahead = followers.get("", [])[::-1]
    while ahead:
        name = ahead.pop()
        ordered[name] = None
        ahead += followers.pop(name, [])[::-1]
    return [*ordered, *(name for name in row if name not in ordered)]  # the last ones are in a circle


def _with_neighbours(
    ends: list[tuple[str, str, str]], slots: dict[str, float | None], report: Report
) -> dict[str, float | None]:
    """The times of the slots of a tier; those without value lie evenly between their neighbours."""
    times = dict(slots)
    next_slot = {first: second for _, first, second in ends}
    for begin in next_slot:
        if times.get(begin) is None:
            continue
        chain, slot = [begin], next_slot[begin]
        while times.get(slot) is None and slot in next_slot and len(chain) <= len(next_slot):
            chain.append(slot)
            slot = next_slot[slot]
        chain.append(slot)
        start, end = times[begin], times.get(slot)
        if start is not None and end is not None and len(chain) > 2:
            for index, inner in enumerate(chain[1:-1], 1):
                times[inner] = start + (end - start) * index / (len(chain) - 1)
            text = counted(len(chain) - 2, "time")
            report.remark(f"{text} without value, taken evenly from the neighbours as ELAN shows them")
    return times


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The document of one video: a tier for each label, a further one where two of a label overlap."""
    lose_scores(videos, report, "ELAN")
    (video,) = videos
    root = Element("ANNOTATION_DOCUMENT", AUTHOR="", DATE="1970-01-01T00:00:00+00:00")
    root.attrib.update({"FORMAT": "3.0", "VERSION": "3.0", SCHEMA_ATTRIBUTE: SCHEMA})
    header = SubElement(root, "HEADER", MEDIA_FILE="", TIME_UNITS="milliseconds")
    url = video.name if video.path is None else video.path.absolute().as_uri()
    media = {"MEDIA_URL": url, "MIME_TYPE": "video/mp4", "RELATIVE_MEDIA_URL": f"./{video.file_name}"}
    SubElement(header, "MEDIA_DESCRIPTOR", media)
    order = SubElement(root, "TIME_ORDER")
    times: list[int] = []
    for label in label_names(videos):
        rows = disjoint(item for item in video.labels if item.label == label)
        for row_number, row in enumerate(rows, 1):
            name = label if row_number == 1 else f"{label} ({row_number})"
            tier = SubElement(root, "TIER", LINGUISTIC_TYPE_REF="default-lt", TIER_ID=name)
            for item in row:
                times += (max(round(1000 * time), 0) for time in (item.start, item.end))
                _write_annotation(tier, item.label, len(times))
    for time, slot in sorted((time, slot) for slot, time in enumerate(times, 1)):
        SubElement(order, "TIME_SLOT", TIME_SLOT_ID=f"ts{slot}", TIME_VALUE=str(time))
    kind = {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true", "GRAPHIC_REFERENCES": "false"}
    SubElement(root, "LINGUISTIC_TYPE", kind)
    return xml_text(root)


def _write_annotation(tier: Element, label: str, slot: int) -> None:
    """An annotation whose second slot has the number `slot`, and the first the one before."""
    annotation = SubElement(SubElement(tier, "ANNOTATION"), "ALIGNABLE_ANNOTATION")
    annotation.set("ANNOTATION_ID", f"a{slot // 2}")
    annotation.set("TIME_SLOT_REF1", f"ts{slot - 1}")
    annotation.set("TIME_SLOT_REF2", f"ts{slot}")
    SubElement(annotation, "ANNOTATION_VALUE").text = label
