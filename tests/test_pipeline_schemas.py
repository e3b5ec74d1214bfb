"""Schemas: what is of another type, too deep, too large or not finite is refused in one short line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from pydantic import TypeAdapter

from pipeline.files import DEEPEST, parse_json
from pipeline.schemas import Count, Lenient, Number, Table, Text, exact, parse_yaml, validated


@exact
@dataclass(frozen=True)
class Schema:
    """One field of each type."""

    number: Number
    count: Count
    text: Text
    table: Table


SCHEMA = TypeAdapter(Schema)
GOOD = {"number": 1, "count": 2, "text": "\udcff", "table": {"a": [1.5, None, "x"]}}


def test_what_has_the_form_comes_back_with_odd_file_names_and_whole_numbers():
    assert validated(SCHEMA, GOOD, where="x", advice="y") == Schema(1.0, 2, "\udcff", {"a": [1.5, None, "x"]})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *[("number", value, "want a number") for value in (True, "1", None, [1], 10**400)],
        *[("number", value, "want a finite number") for value in (math.nan, math.inf)],
        *[("count", value, "count: got") for value in (True, 1.5, -1, 2**60, 10**4000, "1")],
        *[("text", value, "want text") for value in (1, None, ["a"])],
        ("table", {"a": [{"b": math.inf}]}, "want finite numbers"),
        ("table", [], "want an object"),
        ("other", 1, "other: unknown"),
    ],
)
def test_another_type_is_refused_in_one_line_with_its_place(name, value, wanted):
    with pytest.raises(ValueError) as caught:
        validated(SCHEMA, {**GOOD, name: value}, where="a.json", advice="copy it again")
    message = str(caught.value)
    assert message.startswith("a.json: ") and message.endswith("; copy it again"), message
    assert wanted in message and "\n" not in message and len(message) < 200


def test_a_missing_field_is_named_and_a_long_input_only_begun():
    with pytest.raises(ValueError, match=r"^x: number: missing, and 3 more; y$"):
        validated(SCHEMA, {}, where="x", advice="y")
    for value in ("x" * 100_000, {"y" * 100_000: 1}, list(range(100_000))):
        with pytest.raises(ValueError) as caught:
            validated(SCHEMA, {**GOOD, "number": value}, where="x", advice="y")
        assert len(str(caught.value)) < 200


def test_numbers_of_public_files_may_be_texts_but_not_everything_that_python_reads():
    schema = TypeAdapter(Lenient)
    assert [validated(schema, value, where="", advice="") for value in (1, 0.5, "0.5", " 2 ")] == [
        1,
        0.5,
        0.5,
        2,
    ]
    for value in ("0_2", "nan", "inf", "", "x", True, None, "1e999"):
        with pytest.raises(ValueError):
            validated(schema, value, where="", advice="")


@pytest.mark.slow
@pytest.mark.parametrize("begin, end", [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 990, 3000, 100_000])
def test_nesting_is_bounded_whatever_is_nested(begin, end, depth):
    for parse in (parse_json, parse_yaml):
        if parse is parse_yaml and depth > 5000:
            continue  # PyYAML takes seconds for its scan
        with pytest.raises(ValueError, match=r"^x: nested too deeply"):
            parse(begin * depth + "1" + end * depth, where="x")
    shallow = DEEPEST // (2 if begin == '[{"a":' else 1) - 1
    parse_json(begin * shallow + "1" + end * shallow, where="x")


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1\n",
        "a: !!bool x\n",
        "a: !!int ''\n",
        "a: !!timestamp x\n",
        "a: &a [*a]\n",
        "a: !!python/object/apply:os.system [ls]\n",
        "a: " + "9" * 5000,
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{n}: &{n} [{','.join(['*' + b] * 10)}]\n" for b, n in zip("abcdefgh", "bcdefghi", strict=True)
        ),
    ],
)
def test_odd_yaml_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^x[,:] ") as caught:
        parse_yaml(text, where="x")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["plain", "\U00020bb7 \U0001f600", "odd \udcff", "line \u2028"])
def test_a_text_that_json_writes_is_the_same_in_yaml(name):
    assert parse_yaml(json.dumps({name: [name]}), where="x") == {name: [name]}
