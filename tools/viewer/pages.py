"""Fills the templates: one HTML file that needs nothing from outside, whatever the names in the data are.

Data reaches a page in two ways only: as escaped text, or as JSON in a block that is never run, with <, > and
& written as \\u003c and so on. A content security policy names the page's own script and style by their
hashes: the browser runs and loads nothing else, the video apart.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
VIEWER = ("model.js", "player.js", "timeline.js", "table.js", "viewer.js")
INDEX = ("index.js",)


@cache
def template(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def script_of(names: tuple[str, ...]) -> str:
    """The files as one script, in a scope of its own."""
    return '(() => {\n"use strict";\n' + "".join(template(name) for name in names) + "})();\n"


@cache
def style_of(names: tuple[str, ...]) -> str:
    return "".join(template(name) for name in names)


@cache
def policy(script: str, style: str) -> str:
    """What the browser may do with the page: run this script, use this style, play a video; nothing else."""
    allowed = [_hash(text) for text in (script, style)]
    return (
        f"default-src 'none'; script-src {allowed[0]}; style-src {allowed[1]}; "
        "media-src 'self' file: blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def block(value: Any) -> str:
    """The value as JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def fill(name: str, values: dict[str, str]) -> str:
    """The template with each {{word}} replaced, once: what is put in is not searched again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template(name))


def video_page(
    data: dict[str, Any], media: str, *, before: str | None, after: str | None, summary: Sequence[str]
) -> str:
    """The page of one video. media: base64 or nothing; before, after: addresses of the neighbouring pages."""
    script, style = script_of(VIEWER), style_of(("page.css", "viewer.css"))
    steps = [("Previous", "prev", before), ("Next", "next", after)]
    links = "".join(
        f'<a rel="{kind}" href="{escape(address)}">{word}</a>' for word, kind, address in steps if address
    )
    return fill(
        "viewer.html",
        {
            "policy": policy(script, style),
            "title": escape(data["name"]),
            "summary": " &middot; ".join(escape(part) for part in summary),
            "links": links,
            "style": style,
            "script": script,
            "data": block(data),
            "media": media,
        },
    )


def index_page(data: dict[str, Any], *, title: str, summary: Sequence[str], remarks: Sequence[str]) -> str:
    """The page that lists all videos."""
    script, style = script_of(INDEX), style_of(("page.css", "index.css"))
    return fill(
        "index.html",
        {
            "policy": policy(script, style),
            "title": escape(title),
            "summary": " &middot; ".join(escape(part) for part in summary),
            "remarks": "".join(f"<p>{escape(remark)}</p>" for remark in remarks),
            "style": style,
            "script": script,
            "data": block(data),
        },
    )
