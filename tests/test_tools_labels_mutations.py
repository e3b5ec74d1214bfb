"""Files that are cut, doubled, mixed up or changed byte by byte: read, or refused in one line."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from test_tools_labels_boris import AGGREGATED, TABULAR_8, project
from test_tools_labels_cvat import box, document
from test_tools_labels_elan import SAMPLE
from test_tools_labels_label_studio import task, timeline
from test_tools_labels_text_files import AUDACITY, SRT, VTT
from test_tools_labels_via import PROJECT, SEGMENTS, TABLE

from tools.labels.formats import FORMATS, OWN, READABLE, recognise
from tools.labels.labelled import LabelFile, Report
from tools.labels.text_files import read_text

FOREIGN = [name for name in READABLE if name not in OWN]  # other tests have our own readers
ROUNDS = 150  # of each sample, a second or two in all
TRACK = f'<track id="0" label="walk">{box(0)}{box(1)}{box(2, 1)}</track>'
SAMPLES = {
    "a.csv": AGGREGATED,
    "a.tsv": TABULAR_8,
    "a.boris": json.dumps(project()),
    "a.eaf": SAMPLE,
    "a.via.json": json.dumps(PROJECT),
    "a.via.csv": TABLE,
    "b.via.csv": SEGMENTS,
    "a.xml": document(TRACK + '<tag label="sun" frame="0"/><image id="3"><tag label="x"/></image>'),
    "a.json": json.dumps([task(timeline(1, 10, "run"), timeline(2, 3, "a", "b"))]),
    "a.txt": AUDACITY,
    "a.srt": SRT,
    "a.vtt": VTT,
    "a.frames.csv": "video,label,start_frame,end_frame\na.mp4,run,25,50\nb.mp4,,,\n",
}
TOKENS = ('"1"', "1.5", "0", '"vid"', "[", "true", '""', "1,", "\t", ">")
VALUES = ('""', "null", "[]", "{}", "-1", "1e999", "NaN", "true", '"\\ud800"', "[[[[", "9" * 400, '{"a": 1}')


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one change."""
    begin, length = chance.randrange(len(data)), chance.randrange(1, 40)
    part = data[begin : begin + length]
    kind = chance.randrange(6)
    if kind == 0:
        return data[:begin]
    if kind == 1:
        return data[:begin] + data[begin + length :]
    if kind == 2:
        return data[:begin] + part * chance.randrange(2, 5) + data[begin:]
    if kind == 3:
        return data[:begin] + bytes([chance.randrange(256)]) + data[begin + 1 :]
    text = data.decode(errors="replace")
    if kind == 4:  # another value in the place of one
        token = chance.choice([token for token in TOKENS if token in text] or [""])
        return text.replace(token, chance.choice(VALUES), chance.randrange(1, 3)).encode()
    lines = text.splitlines()
    chance.shuffle(lines)
    return "\n".join(lines).encode()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path):
    chance = random.Random(name)
    path: Path = tmp_path / name
    for _ in range(ROUNDS):
        path.write_bytes(mutated(SAMPLES[name].encode(), chance))
        try:
            text = read_text(path)
            found = recognise(path, text) or chance.choice(FOREIGN)
            FORMATS[found].read(LabelFile(path, text, Fraction(25)), report := Report())
        except ValueError as error:
            message = str(error)
        else:
            message = "".join(report.lines("")[:1])
        assert len(message) <= 500 and "\n" not in message, message
