"""The base class of all groups of settings: frozen, strict, each setting explained below its default.

`leantad settings`, docs/settings.md and error messages read the explanations from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LARGEST = 2**53  # whole numbers up to it are exact in every number type, JSON's and YAML's too
MOST_PROBLEMS = 3  # of a validation that a message names
MOST_CHARACTERS = 60  # of an input that a message quotes
# what JSON Schema calls a type -> what the reference calls it
TYPES = {
    "boolean": "true or false",
    "integer": "integer",
    "null": "null",
    "number": "number",
    "string": "text",
}


@dataclass(frozen=True)
class Setting:
    """One setting as the reference shows it."""

    name: str  # dotted
    type: str  # such as "number or null"
    required: bool
    default: Any  # a JSON value; None if required
    allowed: str  # range or choices, such as "above 0, at most 1"; empty: whatever the type allows
    meaning: str  # what it is, its unit, what larger or smaller does


class SettingsGroup(BaseModel):
    """Settings that belong together; a string below a field is its description.

    An unknown key is an error, and nothing can be changed afterwards. A validator of several settings raises
    ValueError with a message that begins with the name of the one to change: "crop: got ...".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_huge(cls, value: Any) -> Any:
        """A whole number that no computer counts to overflows somewhere in the libraries, later."""
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError(f"want a whole number of at most {LARGEST}")
        return value


def groups_of(group: type[SettingsGroup], name: str = "") -> Iterator[tuple[str, type[SettingsGroup]]]:
    """The group and all within it, each after its parent, with dotted names; name: the group's own."""
    yield name, group
    for field_name, field in group.model_fields.items():
        if is_group(field.annotation):
            yield from groups_of(field.annotation, _dotted(name, field_name))


def settings_of(group: type[SettingsGroup], name: str = "") -> list[Setting]:
    """The settings of a group, in order, without those of groups within it; name: the group's own."""
    schemas = group.model_json_schema()["properties"]
    return [
        Setting(
            name=_dotted(name, field_name),
            type=_type_of(schemas[field_name]),
            required=field.is_required(),
            default=schemas[field_name].get("default"),
            allowed=_allowed_by(schemas[field_name]),
            meaning=unwrapped(field.description),
        )
        for field_name, field in group.model_fields.items()
        if not is_group(field.annotation)
    ]


def is_group(annotation: object) -> TypeGuard[type[SettingsGroup]]:
    """Whether the type of a field is a group of settings."""
    return isinstance(annotation, type) and issubclass(annotation, SettingsGroup)


def explain(error: ValidationError, *, where: str = "") -> str:
    """The problems of a validation as one line; each names its setting and says what the setting is.

    where: dotted name of the group that was validated. Problems of what is no SettingsGroup are named alone.
    """
    group = {each.__name__: each for each in SettingsGroup.__subclasses__()}.get(error.title)
    problems = [_problem(item, group, where) for item in error.errors()[:MOST_PROBLEMS]]
    more = error.error_count() - len(problems)
    return "; ".join(problems + ([f"and {more} more"] if more else []))


def _problem(item: ErrorDetails, group: type[SettingsGroup] | None, where: str) -> str:
    name = _dotted(where, *(str(part)[:MOST_CHARACTERS] for part in item["loc"]))
    message = item["msg"].removeprefix("Value error, ")
    inner, description = _found(group, item["loc"])
    if item["type"] == "value_error" and inner:
        return _dotted(name, message)  # a check of several settings begins with the name of one
    if item["type"] == "missing":
        message = "missing, it has no default"
    elif item["loc"]:
        message += f" (got {_quoted(item['input'])})"
    return "; ".join([f"{name or 'settings'}: {message}", *_first_sentence(description)])


def _found(
    group: type[SettingsGroup] | None, location: Sequence[int | str]
) -> tuple[type[SettingsGroup] | None, str | None]:
    """What is at a location below `group`: the group there, if it is one, and its description, if any."""
    for part in location:
        field = group.model_fields.get(str(part)) if group else None
        if field is None or not is_group(field.annotation):
            return None, field.description if field else None
        group = field.annotation
    return group, group.__doc__ if group else None


def _first_sentence(description: str | None) -> list[str]:
    """The description's first sentence, as it can be appended to a message; empty if there is none."""
    sentence = re.split(r"\.\s", unwrapped(description))[0].rstrip(".")
    if not sentence:
        return []
    ordinary = sentence.split()[0][1:].islower()  # and no name such as AdamW or tIoU
    return [sentence[0].lower() + sentence[1:] if ordinary else sentence]


def _quoted(value: object) -> str:
    """The beginning of an input. pipeline/text.py has `short`, but the rooms import this file."""
    try:
        text = repr(value[: MOST_CHARACTERS + 1] if isinstance(value, str) else value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _dotted(*parts: int | str) -> str:
    return ".".join(str(part) for part in parts if part != "")


def unwrapped(text: str | None) -> str:
    """A docstring without its line breaks; empty if there is none."""
    return " ".join((text or "").split())


def _type_of(schema: Mapping[str, Any]) -> str:
    """The type in a JSON Schema in plain English: "integer", "number or null", "list of numbers"."""
    if "anyOf" in schema:
        return " or ".join(_type_of(option) for option in schema["anyOf"])
    if schema["type"] == "object":
        return f"{_type_of(schema['additionalProperties'])}s by name"
    if schema["type"] != "array":
        return TYPES[schema["type"]]
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])} {_type_of(schema['prefixItems'][0])}s"
    return f"list of {_type_of(schema['items'])}s"


def _allowed_by(schema: Mapping[str, Any]) -> str:
    """The range or the choices in a JSON Schema in plain English; empty if all values are allowed."""
    if "anyOf" in schema:
        return ", ".join(filter(None, map(_allowed_by, schema["anyOf"])))
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if "items" in schema or "additionalProperties" in schema:
        each = _allowed_by(schema.get("items") or schema["additionalProperties"])
        return f"each {each}" if each else ""
    bounds = {
        "minimum": "at least {:g}",
        "exclusiveMinimum": "above {:g}",
        "maximum": "at most {:g}",
        "exclusiveMaximum": "below {:g}",
        "multipleOf": "a multiple of {:g}",
    }
    return ", ".join(text.format(schema[key]) for key, text in bounds.items() if key in schema)
