"""HTML from Jinja2 templates: whatever is not Markup is escaped, and an unknown name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def template_environment(folder: Path) -> Environment:
    """The templates of a folder; a line that holds a statement alone leaves none; `tojson` adds no spaces."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


TEMPLATES = template_environment(Path(__file__).parent)


def render(name: str, values: Mapping[str, Any]) -> Markup:
    """A template of this folder, filled with the values."""
    return Markup(TEMPLATES.get_template(name).render(values))
