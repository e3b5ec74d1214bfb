"""Documents of a known schema, checked once where they enter, so that the code inside may trust them.

A schema is whatever pydantic validates: a dataclass, a TypedDict, a list of them; its fields are of the types
below, which take no value of another type in silence. JSON is parsed by `files.parse_json`, YAML here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    AllowInfNan,
    ConfigDict,
    Field,
    InstanceOf,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)

from settings_group import LARGEST

from .files import check_depth
from .text import plain_number, short

Value = TypeVar("Value")
exact = with_config(ConfigDict(extra="forbid"))  # decorates a dataclass whose schema has no other fields

MOST_VALUES = 1_000_000  # in a YAML document; more come only from references to references

Number = Annotated[float, Strict(), AllowInfNan(False)]  # a finite one, whole or not


def _number_in(text: str) -> float:
    """The number that a text states; ValueError if it states none, or one that is not finite."""
    number = plain_number(text)
    if not math.isfinite(number):
        raise ValueError("want a finite number")
    return number


# A finite number, or the text of one, as public files have it; a float in either case.
Lenient = Annotated[
    Number | Annotated[str, Strict(), AfterValidator(_number_in)], Field(union_mode="left_to_right")
]
Count = Annotated[int, Strict(), Field(ge=0, le=LARGEST)]
Text = InstanceOf[str]  # pydantic's str refuses lone surrogates, which odd file names have


def finite(value: Any) -> Any:
    """The plain value; ValueError for a number in it that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is in it, want finite numbers")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        finite(item)
    return value


Table = Annotated[dict[Text, Any], AfterValidator(finite)]  # an object of plain values, whatever they are

WANTED = {
    "is_instance_of": "text",
    "float_type": "a number",
    "int_type": "a whole number",
    "dict_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "dataclass_type": "an object",
    "model_type": "an object",
}


def validated(schema: TypeAdapter[Value], value: object, *, where: object, advice: str) -> Value:
    """The value as its schema types it; ValueError, one line: where, what we got, what we want, `advice`."""
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{where}: {_problem_in(error)}; {advice}") from None


def _problem_in(error: ValidationError) -> str:
    """The first problem, and how many more there are."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part)[:60] for part in first["loc"][:8])
    if first["type"] == "missing":
        problem = "missing"
    elif first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        problem = "unknown"
    else:
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        problem = f"got {short(first['input'])}, want {WANTED.get(first['type'], message)}"
    more = error.error_count() - 1
    return short(
        f"{name or 'document'}: {problem}" + (f", and {more} more" if more else ""), 300, quoted=False
    )


# ------------------------------------------------------------------------------------------------ YAML


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, which YAML would silently let win, and odd numbers.

    YAML 1.1 reads 0_2 as 2, 1:30 as 90, and 010 as 8.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ValueError(f"line {line}: got a list or a group as a key, want a name")
            if key_node.value in seen:
                raise ValueError(f"line {line}: {short(key_node.value)} is set twice; keep one")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """The number that a person reads."""
        is_float = node.tag.endswith("float")
        number = self.construct_yaml_float(node) if is_float else self.construct_yaml_int(node)
        if math.isfinite(number) and number != plain_number(node.value):
            raise ValueError(f"got {short(node.value)}, want a number such as 12.5")
        return number

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """With one character where JSON, which is YAML, has two escapes: those beyond 16 bits."""
        text: str = self.construct_yaml_str(node)
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


for tag in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{tag}", _StrictLoader.construct_number)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_text)


def parse_yaml(text: str, *, where: str) -> Any:
    """YAML to plain values; ValueError naming `where` and the line."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(
            f"{where}, line {line}: not YAML: {short(error.problem, 200, quoted=False)}"
        ) from error
    except yaml.YAMLError as error:  # a character that no YAML has
        raise ValueError(f"{where}: not YAML: {short(error, 200)}") from error
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply to be a file of settings") from None
    except ValueError as error:
        raise ValueError(f"{where}, {short(error, 200)}") from error
    except (KeyError, AttributeError, IndexError, TypeError, OverflowError) as error:
        # what PyYAML lets through for a value that is not of the type of its tag, such as `!!bool x`
        raise ValueError(
            f"{where}: not YAML: a value is not what its tag says ({short(error, 80)})"
        ) from error
    check_depth(value, where=where, most=MOST_VALUES)
    return value


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file; ValueError naming it, and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8 text; want a YAML file") from None
    return parse_yaml(text, where=str(path))
