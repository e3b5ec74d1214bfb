"""Compact detections are the detections that they were made of, in less memory."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.compact_detections import CompactDetections

NUMBER = st.floats(allow_nan=False, allow_infinity=False)
DETECTION = st.fixed_dictionaries(
    {"segment": st.lists(NUMBER, min_size=2, max_size=2), "label": st.text(), "score": NUMBER}
)


@pytest.mark.slow
@given(st.lists(DETECTION, max_size=20))
def test_each_number_and_label_comes_back_as_it_was(detections):
    compact = CompactDetections(detections)
    assert list(compact) == detections and compact == detections and compact == tuple(detections)
    assert CompactDetections(compact) == compact and len(compact) == len(detections)
    assert compact[:2] == tuple(detections[:2]) and compact[::-1] == tuple(reversed(detections))
    assert list(reversed(compact)) == detections[::-1]


def test_it_behaves_as_a_sequence_of_dicts():
    detections = [{"segment": [0.5, 2.0], "label": "run", "score": 0.25}] * 3
    compact = CompactDetections(iter(detections))
    assert compact[-1] == detections[-1] and detections[0] in compact
    assert compact != detections[:2] and compact != "run" and compact != 3
    assert repr(compact).startswith("CompactDetections([{'segment': [0.5, 2.0]")
    assert not CompactDetections(()) and CompactDetections(()) == ()
    with pytest.raises(IndexError):
        compact[3]
    with pytest.raises(TypeError):
        hash(compact)


def test_one_takes_a_tenth_of_a_dicts_memory():
    detection = {"segment": [0.1, 2.3], "label": "run", "score": 0.4}
    compact = CompactDetections([detection] * 100)
    numbers = [*detection["segment"], detection["score"]]
    dicts = sum(map(sys.getsizeof, [detection, detection["segment"], *numbers]))
    assert compact._numbers.nbytes + compact._label.nbytes == 100 * 28 < 0.1 * 100 * dicts
