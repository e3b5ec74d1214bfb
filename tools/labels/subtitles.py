"""Subtitle files as annotations: SubRip (.srt) and WebVTT (.vtt); the text of a cue is the label.

WebVTT: w3.org/TR/webvtt1 (header, NOTE, STYLE and REGION blocks, cue names, settings behind the times, hours
that may be missing, tags). SubRip has no standard: commas or points before the milliseconds, counters that
may be missing, tags as in HTML and {in braces}, are what players accept.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from train.detection_texts import cue_text, cue_times, subtitles

from .labelled import LabelFile, LabelledVideo, Loss, Report, TimedLabel, by_start, timed
from .text_files import lines_of, seconds

TIMES = re.compile(r"\s*([\d:.,]+)\s*-->\s*([\d:.,]+)(?:\s.*)?")
TAG = re.compile(
    r"</?(?:b|i|u|s|c|v|lang|ruby|rt|font)(?:[\s.][^<>]*)?>|<[\d:.]+>|\{\\[^{}]*\}", re.IGNORECASE
)
SCORE = re.compile(r"(.*\S) ([01]\.\d\d)")  # as predict writes them: "label 0.87"
UNTIMED = Loss("text without times", "texts without times", "no cue says when they are shown")
BLOCKS = ("WEBVTT", "NOTE", "STYLE", "REGION")


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The cues; the video is called as the file is, for the file names none."""
    is_webvtt = file.text.startswith("WEBVTT")
    labels: list[TimedLabel] = []
    for line_number, block in blocks_of(file.text):
        at = next((index for index, line in enumerate(block) if "-->" in line), None)
        if at is None:
            if not (is_webvtt and block[0].startswith(BLOCKS)):
                report.lose(UNTIMED)
            continue
        where = f"{file.path}, line {line_number + at}"
        found = TIMES.fullmatch(block[at])
        if not found:
            raise ValueError(f"{where}: got {block[at][:60]!r}, want 00:00:01.000 --> 00:00:02.000")
        start, end = (seconds(where, time) for time in found.groups())
        text = TAG.sub("", " ".join(block[at + 1 :]))
        labels += timed(report, start, end, html.unescape(text) if is_webvtt else text)
    return [LabelledVideo(file.video_name, by_start(_with_scores(labels, report)))]


def blocks_of(text: str) -> list[tuple[int, list[str]]]:
    """(number of the first line, lines) of what empty lines separate."""
    blocks: list[tuple[int, list[str]]] = []
    inside = False
    for line_number, line in enumerate(lines_of(text), 1):
        if not line.strip():
            inside = False
        elif inside:
            blocks[-1][1].append(line)
        else:
            blocks.append((line_number, [line]))
            inside = True
    return blocks


def _with_scores(labels: list[TimedLabel], report: Report) -> list[TimedLabel]:
    """The labels with the scores that predict writes behind them, if every one of them has one."""
    found = [SCORE.fullmatch(item.label) for item in labels]
    if not labels or not all(found):
        return labels
    report.remark("a number stands behind every text, and is taken for its score")
    return [
        TimedLabel(item.start, item.end, match[1], float(match[2]))
        for item, match in zip(labels, found, strict=True)
        if match
    ]


def write_srt(videos: Sequence[LabelledVideo], report: Report) -> str:
    """SubRip text, as predict writes it; without a score where a label has none."""
    return subtitles([_detection(item) for video in videos for item in video.labels])


def write_vtt(videos: Sequence[LabelledVideo], report: Report) -> str:
    """WebVTT text, as write_srt."""
    cues = [
        f"\n{cue_times(item.start, item.end, '.')}\n{html.escape(cue_text(_detection(item)), quote=False)}\n"
        for video in videos
        for item in video.labels
    ]
    return "WEBVTT\n" + "".join(cues)


def _detection(item: TimedLabel) -> dict[str, Any]:
    return {"segment": (item.start, item.end), "label": item.label, "score": item.score}
