"""One video is one video: every spelling meets every other; what is unclear is refused."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.packing.shard_writer import unique_keys
from train.evaluation.video_names import match_videos

FILES = ["monday morning.mp4", "\u00dcbung \u00e4\u00f6\u00fc.mp4", "\u65e5\u672c.webm", 'a "quoted".avi']
FILES += ["plain.MOV", "trip/north/day 1.mkv", "trip/south/day 1.mkv", "x.y.mp4"]
STEMS = [file.rpartition(".")[0] for file in FILES]
KEYS = unique_keys(FILES)
DECOMPOSED = {"\u00dcbung \u00e4\u00f6\u00fc.mp4": "U\u0308bung a\u0308o\u0308u\u0308.mp4"}
# who wrote the names -> for each file, the key and what else is known
SPELLINGS = {
    "csv with endings": [(file, []) for file in FILES],
    "csv of a mac": [(DECOMPOSED.get(file, file), []) for file in FILES],
    "csv of windows": [(file.replace("/", "\\"), []) for file in FILES],
    "csv without endings": [(stem, []) for stem in STEMS],
    "data set": [(KEYS[file], [file, f"raw/{file}"]) for file in FILES],
    "data set of stems": [(unique_keys(STEMS)[stem], [stem, stem + ".mkv"]) for stem in STEMS],
    "prediction": [(stem, [f"/data/{file}"]) for stem, file in zip(STEMS, FILES, strict=True)],
}


@pytest.mark.parametrize(("detected", "true"), product(SPELLINGS, SPELLINGS))
def test_every_spelling_meets_every_other(detected, true):
    mine, theirs = SPELLINGS[detected], SPELLINGS[true]
    wanted = {key: other for (key, _), (other, _) in zip(mine, theirs, strict=True)}
    assert match_videos(dict(mine), dict(theirs)) == wanted
    one = mine[0]  # the others need not be there
    assert match_videos(dict([one]), dict(theirs)) == {one[0]: wanted[one[0]]}


@pytest.mark.parametrize("true", ["csv with endings", "csv of a mac", "csv of windows", "data set"])
def test_bare_keys_of_a_run_meet_the_annotations_that_it_was_packed_from(true):
    keys = {KEYS[file]: [] for file in FILES}
    wanted = {KEYS[file]: key for file, (key, _) in zip(FILES, SPELLINGS[true], strict=True)}
    assert match_videos(keys, dict(SPELLINGS[true])) == wanted


def test_activitynets_prefix_may_be_on_either_side():
    assert match_videos({"abc": []}, {"v_abc": []}) == {"abc": "v_abc"}
    assert match_videos({"v_abc": ["in/v_abc.mp4"]}, {"abc": []}) == {"v_abc": "abc"}
    both = {"abc": [], "v_abc": []}
    assert match_videos(both, both) == {"abc": "abc", "v_abc": "v_abc"}


def test_an_equal_key_is_never_taken_by_another_spelling():
    assert match_videos({"a.mp4": [], "a": []}, {"a": []}) == {"a": "a"}
    assert match_videos({"a": ["b.mp4"]}, {"a": [], "b.mp4": []}) == {"a": "a"}
    assert match_videos({"_abc": [], "abc": []}, {"abc": [], "def": []}) == {"abc": "abc"}


def test_a_strict_rule_settles_what_a_loose_one_could_not():
    assert match_videos({"x_mp4": [], "x_avi": []}, {"x.avi": [], "x.mp4": []}) == {
        "x_mp4": "x.mp4",
        "x_avi": "x.avi",
    }
    accents = {"day \u00fc.mp4": [], "day u.mp4": []}
    assert match_videos({"1": ["in/day u\u0308.mp4"]}, accents) == {"1": "day \u00fc.mp4"}


def test_names_that_are_only_alike_are_other_videos():
    strangers = {"Monday": [], "monday2": [], "\u4eac\u90fd 2": ["\u4eac\u90fd 2.mp4"], "2": ["2.mp4"]}
    assert match_videos(strangers, {"monday": [], "\u5927\u962a 2.mp4": [], "!!!": []}) == {}
    assert match_videos({"x": ["x.avi"], "y": ["x.mp4"]}, {"x.mp4": []}) == {"y": "x.mp4"}


def test_what_may_be_either_of_two_is_refused_by_both_names():
    with pytest.raises(ValueError, match=r"'x': may be 'a/x.mp4' or 'b/x.mp4' of the ground truth"):
        match_videos({"x": ["c/x.mp4"]}, {"a/x.mp4": [], "b/x.mp4": []})
    with pytest.raises(ValueError, match=r"'x': may be 'x_mp4' or 'x_avi' of the detections"):
        match_videos({"x_mp4": ["x.mp4"], "x_avi": ["x.avi"]}, {"x": []})
