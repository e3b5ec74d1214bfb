"""Fills the templates: one HTML file that needs nothing from outside, whatever the names in the data are.

Data reaches a page in two ways only: as text that the template escapes, or as JSON in a block that is never
run, with <, > and & written as \\u003c and so on. A content security policy names the page's own script and
style by their hashes: the browser runs and loads nothing else, the video apart.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from train.report.page import template_environment

FOLDER = Path(__file__).parent
TEMPLATES = template_environment(FOLDER)
VIEWER_SCRIPTS = ("model.js", "player.js", "timeline.js", "table.js", "viewer.js")
VIEWER_STYLES = ("page.css", "viewer.css")
INDEX_SCRIPTS = ("index.js",)
INDEX_STYLES = ("page.css", "index.css")


def video_page(
    data: dict[str, Any], media: str, *, before: str | None, after: str | None, summary: Sequence[str]
) -> str:
    """The page of one video.

    data: as `content.video_data` returns it; media: the video as base64, or nothing; before, after: addresses
    of the neighbouring pages.
    """
    return TEMPLATES.get_template("viewer.html.j2").render(
        fixed_parts(VIEWER_SCRIPTS, VIEWER_STYLES),
        title=data["name"],
        summary=summary,
        before=before,
        after=after,
        data=data,
        media=Markup(media),
    )


def index_page(data: dict[str, Any], *, title: str, summary: Sequence[str], remarks: Sequence[str]) -> str:
    """The page that lists all videos."""
    return TEMPLATES.get_template("index.html.j2").render(
        fixed_parts(INDEX_SCRIPTS, INDEX_STYLES), title=title, summary=summary, remarks=remarks, data=data
    )


@cache
def fixed_parts(scripts: tuple[str, ...], styles: tuple[str, ...]) -> dict[str, Markup]:
    """Our own script, in a scope of its own, and style, and the policy that allows these two."""
    script = '(() => {\n"use strict";\n' + _joined(scripts) + "})();\n"
    style = _joined(styles)
    return {"script": Markup(script), "style": Markup(style), "policy": Markup(policy(script, style))}


def _joined(names: Sequence[str]) -> str:
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


def policy(script: str, style: str) -> str:
    """What the browser may do with the page: run this script, use this style, play a video; nothing else."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "media-src 'self' file: blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
