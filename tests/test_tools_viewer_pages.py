"""The viewer's pages as text: no name or datum becomes markup, and files have safe names."""

from __future__ import annotations

import json
import re

from viewer_cases import EVIL

from tools.viewer.build import file_names
from tools.viewer.pages import index_page, video_page


def test_data_cannot_end_the_block_it_stands_in():
    html = index_page({EVIL: EVIL}, title="t", summary=[], remarks=[])
    text = html.split('id="data">')[1].split("</script>")[0]
    assert not re.search("[<>&\u2028]", text) and json.loads(text) == {EVIL: EVIL}


def test_template_syntax_and_markup_in_names_stay_text():
    evil = "{{7*7000}}{% raw %}<script>{{ policy }}"
    html = index_page({}, title=evil, summary=[evil], remarks=[evil])
    html += video_page({"name": evil}, "", before=None, after=None, summary=[evil])
    assert html.count("{{7*7000}}{% raw %}&lt;script&gt;{{ policy }}") == 7 and "49000" not in html


def test_file_names_are_short_safe_and_apart():
    names = file_names(["../../etc/passwd", "a/b", "a b", "A b", "b", "B", "c", "x" * 400, "x" * 401, ""])
    assert len({name.lower() for name in names.values()}) == 10, "on a disk that ignores case, too"
    assert names["c"] == "c"
    assert all(re.fullmatch(r"[\w-]{1,100}", name, re.A) for name in names.values())
