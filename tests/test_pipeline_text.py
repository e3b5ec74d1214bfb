"""Plurals, lists of names, suggestions, short values and tables in messages."""

from __future__ import annotations

import pytest

from pipeline.text import bounded, columns, counted, first_names, plain_number, short, shown, suggestion


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (2000, "2,000 classes")]
)
def test_one_is_no_plural(number, text):
    assert counted(number, "class", "classes") == text


def test_a_plural_is_an_s_unless_one_is_given():
    assert counted(3, "video") == "3 videos"


@pytest.mark.parametrize(
    ("names", "text"),
    [("", ""), ("a", "'a'"), ("abc", "'a', 'b', 'c'"), ("abcde", "'a', 'b', 'c' and 2 more")],
)
def test_of_many_names_the_first_are_shown_and_the_others_counted(names, text):
    assert first_names(names) == text


def test_names_need_no_quotes():
    assert first_names(iter(["a b", "c"]), 1, quoted=False) == "a b and 1 more"


def test_long_names_are_cut_and_names_with_line_breaks_stay_on_a_line():
    label = "a" * 200 + "z" * 100
    assert len(first_names([label] * 3)) < 260 and "zzz'" in first_names([label])
    assert "\n" not in first_names(["pick\nup"], quoted=False)
    assert shown("pick\n  up\tslowly\u3000now") == "pick up slowly now"
    assert len(shown(label)) == 40 and shown(label).startswith("aaa") and shown(label).endswith("zzz")
    assert shown("x" * 40) == "x" * 40


def test_what_would_steer_a_terminal_is_shown_as_escapes():
    assert shown("red\x1b[31m \x07\udc80") == r"red\x1b[31m \x07\udc80"
    other_script = "\u05e9\u05dc\u05d5\u05dd \u0645\u06cc\u200c\u062e"
    assert shown(other_script) == other_script


@pytest.mark.parametrize("text", ["12", " 12.5\u00a0", "-.5", "+3.", "1e-3", "2E2"])
def test_a_number_is_read_as_python_reads_it(text):
    assert plain_number(text) == float(text)


@pytest.mark.parametrize(
    "text",
    ["0_2", "1_000.5", "nan", "inf", "-Infinity", "", ".", "1,5", "0x10", "\u0661", "1:02", "1e", "1 2"],
)
def test_what_python_takes_for_a_number_and_people_do_not_is_refused(text):
    with pytest.raises(ValueError, match="want a number"):
        plain_number(text)


def test_a_near_name_is_suggested_and_all_where_none_is_near():
    assert suggestion("num_clip", ["num_clips", "crop"]) == "did you mean 'num_clips'?"
    assert suggestion("zzz", ["num_clips", "crop"]) == "known: num_clips, crop"
    assert suggestion("zzz", ["num_clips", "crop"], otherwise="see the list") == "see the list"
    assert suggestion("crap", ["num_clips", "crop"], otherwise="see the list") == "did you mean 'crop'?"


def test_a_value_is_cut_to_one_line():
    assert short({"a": "b\n c"}) == "{'a': 'b\\n c'}"
    assert len(short("x" * 500)) == 60 and short("x" * 500).endswith("...")
    assert short(ValueError("no\nsuch file")) == "no such file"


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["name", "seconds", "note"], ["a", 10.5, ""], ["bcdef", 7, "late"]]
    assert columns(rows, "<><").splitlines() == [
        "name   seconds  note",
        "a         10.5",
        "bcdef        7  late",
    ]


def test_a_cell_with_line_breaks_stays_in_its_row():
    assert columns([["a\nb", "1"], ["c", "2"]]) == "a b  1\nc    2"


def test_the_last_alignment_stands_for_all_columns_after_it():
    assert columns([["a", "bb", "cc"], ["aa", "b", "c"]]) == "a   bb  cc\naa   b   c"
    assert columns([["a", "bb"], ["aa", "b"]], ">", indent="  ") == "   a  bb\n  aa   b"


def test_a_value_of_any_size_is_quoted_by_its_beginning():
    assert short("x" * 10**7).startswith("'xxx") and len(short("x" * 10**7)) == 60
    assert short("it's", quoted=False) == "it's"
    assert short(10**5000) == "a number of thousands of digits"


def test_a_line_that_is_too_long_keeps_where_and_what_to_do():
    line = f"a.json: got {'x' * 5000}, want a number; remove it"
    assert len(bounded(line)) == 500 and bounded("short") == "short"
    assert bounded(line).startswith("a.json: got x") and bounded(line).endswith("want a number; remove it")
