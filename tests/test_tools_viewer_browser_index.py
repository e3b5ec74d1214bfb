"""The viewer in a real Chromium: its index, very many segments, a phone, names that try to run as script."""

from __future__ import annotations

import re

import pytest
from viewer_cases import (
    EVIL,
    found,
    go,
    listed,
    many_segments,
    names_of,
    segment,
    shown,
    slide,
    text,
    video,
    wait_for,
)

from tools.viewer.build import make_view
from tools.viewer.media import VideoFinder
from tools.viewer.pages import index_page

pytestmark = pytest.mark.slow  # a browser takes a second a test


def test_the_index_lists_the_worst_video_first_and_leads_to_it(page, site):
    go(page, site / "index.html")
    assert names_of(page) == ["bad", "half", "good", "empty"]
    sort = page.find_element("id", "sort")
    sort.send_keys("name")
    assert names_of(page) == ["bad", "empty", "good", "half"]
    page.find_element("id", "search").send_keys("OO")
    assert names_of(page) == ["good"] and text(page, "#count") == "1 of 4 videos"
    strip = page.find_element("css selector", ".mini-timeline .right").get_attribute("d")
    assert strip.startswith("M125 12H250V") or "M125 12H250V" in strip
    page.find_element("css selector", "a.row").click()
    assert page.title == "good - LeanTAD"
    page.find_element("css selector", "a[rel=prev]").click()
    assert page.title == "half - LeanTAD"


def test_the_index_says_how_its_threshold_was_chosen(page, tmp_path):
    ground_truth = {"a": video("a", (1.0, 3.0, "jump"))}
    best, usual = ", where F1 at tIoU 0.5 over all videos is best.", ": 0.3 of the usual best score"
    for start, truth, says in (1.0, ground_truth, best), (5.0, ground_truth, usual), (1.0, None, usual):
        found_there = {"a": [found(start, start + 2.0, "jump", 0.5)]}
        make_view(found_there, truth, tmp_path, title="t", finder=VideoFinder())
        go(page, tmp_path / "index.html")
        assert says in text(page, "#meaning") and (best in text(page, "#meaning")) == (says == best)
        assert ("none is right at tIoU 0.5." in text(page, "#meaning")) == (start == 5.0)


def test_an_index_of_five_thousand_videos_opens_and_searches_at_once(page, tmp_path):
    strip = [[i * 50, i * 50 + 20] for i in range(15)]
    rows = [
        [f"videos/{i}.html", f"video {i}", 120.0, 15, 15, 0.5, i / 5000, 0.9, strip, [[*s, 1] for s in strip]]
        for i in reversed(range(5000))
    ]
    data = {"hasGroundTruth": True, "threshold": 0.5, "videos": rows}
    (tmp_path / "index.html").write_text(index_page(data, title="t", summary=["5,000 videos"], remarks=[]))
    go(page, tmp_path / "index.html")
    assert names_of(page)[0] == "video 4999" and len(names_of(page)) < 500
    search = (
        "const before = performance.now(), search = document.getElementById('search');"
        "search.value = arguments[0]; search.dispatchEvent(new Event('input'));"
        "document.body.getBoundingClientRect(); return performance.now() - before"
    )
    took = page.execute_script(search, "123")
    assert took < 200 and names_of(page)[0] == "video 4123"
    page.execute_script(search, "")
    before = len(names_of(page))
    page.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    wait_for(page, lambda: len(names_of(page)) > before)


def test_five_hundred_segments_of_twenty_classes_move_at_once(page, tmp_path):
    ground_truth, results = many_segments()
    go(
        page,
        make_view(results, ground_truth, tmp_path, title="t", finder=VideoFinder.open(())).page_of("big"),
    )
    slide(page, 0)
    times = [slide(page, position) for position in (1000, 0) * 4][1::2]  # from none to all
    assert len(shown(page)) == 500
    page.execute_script(
        "document.getElementById('list').scrollTop = 1e9"
    )  # the table fills as it is scrolled
    wait_for(page, lambda: 100 < len(listed(page)) < 500)
    assert len(page.find_elements("css selector", "#names div")) == 20
    # a tenth of a second is felt as at once; the best of four, as the machine may be busy with other tests
    assert min(times) < 100, times


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways(page, site, tmp_path, scheme):
    ground_truth, results = many_segments()
    big = make_view(results, ground_truth, tmp_path, title="t", finder=VideoFinder.open(()))
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        for path in (site / "index.html", site / "videos" / "good.html", big.page_of("big")):
            go(page, path)
            assert page.execute_script("return document.documentElement.scrollWidth") == 400
            ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_names_from_the_data_do_nothing(page, tmp_path):
    ground_truth = {EVIL: video(EVIL, (1, 2, EVIL))}
    results = {EVIL: [found(1, 2, EVIL, 0.5)]}
    view = make_view(results, ground_truth, tmp_path, title=EVIL, finder=VideoFinder.open(()))
    go(page, view.index)
    assert text(page, "h1") and page.title.startswith("</script>")
    assert page.find_element("css selector", ".name").get_attribute("textContent") == EVIL
    page.find_element("css selector", "a.row").click()
    assert page.find_element("css selector", "#names div").get_attribute("textContent") == EVIL
    segment(page, 0).click()
    assert "</script><img" in text(page, "#chosen") and "</script><img" in text(page, "#rows")
    assert page.find_elements("tag name", "img") == [] and page.title != "broken"


def test_only_the_page_s_own_script_may_run(page, site, tmp_path):
    html = (site / "videos" / "bad.html").read_text()
    broken = html.replace(
        "</body>", "<script>document.title = 'broken'</script><img src=x onerror=alert(1)></body>"
    )
    (tmp_path / "page.html").write_text(broken)
    go(page, tmp_path / "page.html")
    assert page.title == "bad - LeanTAD"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))
