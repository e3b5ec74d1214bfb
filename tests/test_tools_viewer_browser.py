"""The viewer's page of a video in a real Chromium: mouse, keys, slider and playback do what they promise."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from click.testing import CliRunner
from metric_cases import found
from odd_video import numbers_shown, video
from painted_video import painted_video
from viewer_cases import (
    GROUND_TRUTH,
    RESULTS,
    film,
    go,
    listed,
    press,
    segment,
    shown,
    slide,
    text,
    view_span,
    wait_for,
)

from pipeline.packing.transcode import EncodingSpec, transcode
from tools.view import main
from tools.viewer.build import make_view
from tools.viewer.media import VideoFinder

pytestmark = pytest.mark.slow  # a browser takes a second a test


def test_the_page_opens_with_what_the_best_threshold_shows(page, site):
    go(page, site / "videos" / "good.html")
    assert shown(page) == [0, 1] and listed(page) == [0, 1]
    assert (
        text(page, "#summary")
        == "2 of 4 detections shown \u00b7 2 right, 0 wrong \u00b7 2 of 2 true actions found"
    )
    names = page.execute_script(
        "return [...document.querySelectorAll('#names div')].map((d) => d.textContent)"
    )
    assert names == ["jump", "run"]
    assert page.title == "good - LeanTAD" and text(page, "#level") == "0.700"


def test_a_video_that_was_not_read_says_so_and_shows_no_time(page, tmp_path):
    results = {"good": RESULTS["good"], "zero": []}
    videos = {"external_data": {"rejected": {"zero": "the file\nis empty"}}, "results": results}
    (tmp_path / "detections.json").write_text(json.dumps(videos))
    result = CliRunner().invoke(main, [str(tmp_path), "--out", str(tmp_path / "view")])
    assert result.exit_code == 1 and result.stderr == "error: zero: not read: the file is empty\n"
    go(page, tmp_path / "view" / "index.html")
    rows = page.execute_script("return [...document.querySelectorAll('#videos a')].map((e) => e.innerText)")
    assert rows[1].split("\n") == ["zero", "not read: the file is empty", "-", "-"]
    go(page, tmp_path / "view" / "videos" / "zero.html")
    assert text(page, "main").strip().endswith("nothing was detected in it: the file is empty.")
    assert text(page, "header").count("not read: the file is empty") == 1
    assert not page.find_element("id", "timeline").is_displayed()


def test_the_slider_changes_what_is_shown_and_how_well_it_fits(page, site):
    go(page, site / "videos" / "good.html")
    slide(page, 0)
    assert shown(page) == [0, 2, 1, 3] and sorted(listed(page)) == [0, 1, 2, 3]
    assert "2 right, 2 wrong" in text(page, "#summary")
    slide(page, 1000)
    assert shown(page) == [0] and "1 of 2 true actions found" in text(page, "#summary")
    go(page, site / "videos" / "half.html")
    assert len(page.find_elements("css selector", ".action.missed")) == 1
    slide(page, 1000)
    assert shown(page) == [] and len(page.find_elements("css selector", ".action.missed")) == 2


def test_scores_show_as_opacity_and_matches_as_pattern(page, site):
    go(page, site / "videos" / "good.html")
    slide(page, 0)
    opacity = [float(segment(page, i).get_attribute("fill-opacity")) for i in range(4)]
    assert opacity == sorted(opacity, reverse=True) and opacity[0] == 1 and opacity[3] > 0.2
    fills = [segment(page, i).value_of_css_property("fill") for i in range(4)]
    assert all("stripes" not in fill for fill in fills[:2]) and all("stripes" in fill for fill in fills[2:])


def test_a_click_plays_exactly_that_segment(page, site):
    go(page, site / "videos" / "good.html")
    segment(page, 0).click()  # 1 s to 2 s
    state = wait_for(page, lambda: (f := film(page)) and not f["paused"] and f["time"] > 1.1 and f)
    assert 1.0 <= state["time"] <= 2.0
    state = wait_for(page, lambda: (f := film(page)) and f["paused"] and f)
    assert state["time"] == pytest.approx(2.0, abs=0.001)  # set there when it stops
    assert "jump \u00b7 1.00 s to 2.00 s \u00b7 score 0.900" in text(page, "#chosen")
    assert page.execute_script("return document.querySelector('tr.chosen').dataset.detection") == "0"


def test_a_click_beside_the_segments_goes_there_and_a_row_plays_its_own(page, site):
    from selenium.webdriver.common.action_chains import ActionChains

    go(page, site / "videos" / "good.html")
    lanes = page.find_element("id", "lanes")
    ActionChains(page).move_to_element_with_offset(
        lanes, lanes.size["width"] // 4, 0
    ).click().perform()  # at 3/4
    assert wait_for(page, lambda: film(page)["time"] > 5.9) and film(page)["paused"]
    page.find_element("css selector", "#rows tr[data-detection='1']").click()
    wait_for(page, lambda: (f := film(page)) and not f["paused"] and 3.0 <= f["time"] <= 5.0)


def test_keys_step_through_the_detections_and_control_the_rest(page, site):
    from selenium.webdriver.common.keys import Keys

    go(page, site / "videos" / "good.html")
    chosen = "return document.querySelector('.det.chosen')?.dataset.detection"
    seen = []
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
        press(page, key)
        seen.append(page.execute_script(chosen))
    assert seen == ["0", "1", "1", "0"]
    wait_for(page, lambda: not film(page)["paused"])
    press(page, " ")
    assert wait_for(page, lambda: film(page)["paused"])
    press(page, " ")
    assert wait_for(page, lambda: not film(page)["paused"])
    press(page, " ")
    press(page, *["["] * 60)
    assert len(shown(page)) == 4
    press(page, "]")
    assert len(shown(page)) < 4
    press(page, "?")
    assert page.execute_script("return document.getElementById('help').open")
    press(page, Keys.ESCAPE)
    assert not page.execute_script("return document.getElementById('help').open")


def test_the_time_axis_zooms_and_moves_by_wheel_buttons_and_keys(page, site):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    go(page, site / "videos" / "good.html")
    assert view_span(page) == pytest.approx((0, 1), abs=0.01)
    before = segment(page, 0).rect  # not in the middle of the axis
    origin = ScrollOrigin.from_element(segment(page, 0))
    ActionChains(page).scroll_from_origin(origin, 0, -400).perform()
    wait_for(page, lambda: view_span(page)[1] < 0.6)
    after = segment(page, 0).rect
    middle = [box["x"] + box["width"] / 2 for box in (before, after)]
    assert after["width"] > 1.5 * before["width"] and middle[0] == pytest.approx(middle[1], abs=3)  # pixels
    press(page, "0")
    assert view_span(page)[1] == pytest.approx(1, abs=0.01)
    press(page, "+")
    assert view_span(page) == pytest.approx((0.25, 0.5), abs=0.01)
    ActionChains(page).key_down(Keys.SHIFT).send_keys(Keys.ARROW_RIGHT).key_up(Keys.SHIFT).perform()
    assert view_span(page) == pytest.approx((0.375, 0.5), abs=0.01)
    lanes = page.find_element("id", "lanes")
    drag = ActionChains(page).move_to_element_with_offset(lanes, 150, 0).click_and_hold()
    drag.move_by_offset(100, 0).move_by_offset(lanes.size["width"] // 4 - 100, 0).release().perform()
    assert view_span(page) == pytest.approx((0.25, 0.5), abs=0.01)
    page.find_element("id", "wider").click()
    assert view_span(page) == pytest.approx((0, 1), abs=0.01)
    press(page, *["+"] * 30)
    assert view_span(page)[1] > 0 and page.find_elements("css selector", "#ruler text")


def test_resting_on_a_segment_shows_its_numbers(page, site):
    from selenium.webdriver.common.action_chains import ActionChains

    go(page, site / "videos" / "good.html")
    slide(page, 0)
    ActionChains(page).move_to_element(segment(page, 2)).perform()
    assert text(page, "#tip").split("\n") == [
        "jump",
        "1.00 s to 2.50 s",
        "score 0.300",
        "tIoU 0.67 with the true 1.00 s to 2.00 s",
        "wrong: a repeat, its action is taken by a higher score",
    ]
    ActionChains(page).move_to_element(
        page.find_element("css selector", ".action[data-action='1']")
    ).perform()
    assert (
        text(page, "#tip")
        == "run: true action\n3.00 s to 5.00 s\nbest tIoU 1.00, by a detection of score 0.800"
    )
    ActionChains(page).move_to_element(page.find_element("css selector", "h1")).perform()
    assert not page.find_element("id", "tip").is_displayed()


def test_the_table_sorts_by_what_is_clicked(page, site):
    go(page, site / "videos" / "good.html")
    slide(page, 0)
    assert listed(page) == [0, 1, 2, 3]
    page.find_element("css selector", "[data-sort='end']").click()
    assert listed(page) == [0, 2, 1, 3]
    page.find_element("css selector", "[data-sort='end']").click()
    assert listed(page) == [3, 1, 2, 0]
    slide(page, 999)
    slide(page, 0)
    assert listed(page) == [3, 1, 2, 0]  # the order outlives the slider
    head = page.find_element("css selector", "[data-sort='end']").find_element("xpath", "..")
    assert head.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize(
    "name, says", [("half", "cannot play half.avi"), ("bad", "no video of this name was found")]
)
def test_without_a_playable_video_the_page_says_why_and_works(page, site, name, says):
    from selenium.webdriver.common.keys import Keys

    go(page, site / "videos" / f"{name}.html")
    wait_for(page, lambda: says in text(page, "#stage"))
    slide(page, 0)
    press(page, Keys.ARROW_RIGHT, " ")
    assert page.execute_script("return document.querySelector('.det.chosen').dataset.detection") == "0"
    assert text(page, "#clock").startswith(f"{RESULTS[name][0]['segment'][0]:.2f} s")


@pytest.mark.parametrize(
    ("length", "start", "end", "says"),
    [
        (180.0, 59.997, 119.996, "60.00 s to 120.00 s"),
        (600.0, 59.997, 119.996, "1:00.00 to 2:00.00"),
        (600.0, 59.994, 119.986, "0:59.99 to 1:59.99"),
        (7200.0, 3599.997, 7199.998, "1:00:00.00 to 2:00:00.00"),
        (7200.0, 59.997, 3661.25, "0:01:00.00 to 1:01:01.25"),
    ],
)
def test_times_are_rounded_before_minutes_are_counted(page, tmp_path, length, start, end, says):
    results, finder = {"long": [found(start, end, "run", 0.9)]}, VideoFinder.open(())
    view = make_view(results, None, tmp_path, title="t", finder=finder, durations={"long": length})
    go(page, view.page_of("long"))
    segment(page, 0).click()
    assert f"run \u00b7 {says} \u00b7 score 0.900" in text(page, "#chosen")


def test_an_embedded_video_needs_no_file(page, tmp_path):
    path = tmp_path / "good.mp4"
    path.write_bytes(painted_video(100))
    finder = VideoFinder.open((path,))
    view = make_view(
        {"good": RESULTS["good"]}, GROUND_TRUTH, tmp_path / "v", title="t", finder=finder, embed_limit=1
    )
    path.unlink()
    go(page, view.page_of("good"))
    segment(page, 0).click()
    wait_for(page, lambda: (f := film(page)) and not f["paused"] and 1.0 < f["time"] <= 2.0)


def test_a_video_of_another_length_is_remarked_on(page, tmp_path):
    path = tmp_path / "good.webm"
    path.write_bytes(painted_video(50, container="webm"))  # 2 s
    view = make_view(
        {"good": RESULTS["good"]}, GROUND_TRUTH, tmp_path / "v", title="t", finder=VideoFinder.open((path,))
    )
    go(page, view.page_of("good"))
    says = "The video ends at 2.00 s, the last segment at 7.00 s: is it the right file?"
    wait_for(page, lambda: text(page, "#mismatch") == says)


def test_a_played_video_that_is_scrolled_away_stays_in_a_corner(page, site):
    go(page, site / "videos" / "good.html")
    page.execute_script(
        "document.querySelector('main').style.paddingBottom = '2000px'; window.scrollTo(0, 1500)"
    )
    away = "return document.getElementById('screen').classList.contains('away')"
    time.sleep(0.1)
    assert not page.execute_script(away)
    press(page, " ")
    wait_for(page, lambda: page.execute_script(away))
    page.execute_script("window.scrollTo(0, 0)")
    wait_for(page, lambda: not page.execute_script(away))


LONG = (pytest.mark.slow, pytest.mark.ci)
CLOCKS = {  # stamps of the frames, 25 a second; when the sound begins; when the file does
    "sound begins first": (range(50, 125), 0.0, 0.0),
    "all begins late": (range(75, 150), None, 3.0),
    "all begins late, sound first": (range(100, 175), 3.0, 3.0),
}


@pytest.mark.parametrize(
    ("case", "embed"),
    [*((case, True) for case in CLOCKS), *(pytest.param(case, False, marks=LONG) for case in CLOCKS)],
)
def test_a_time_of_the_page_is_the_picture_that_is_packed_for_it(page, tmp_path, case, embed):
    frames, sound, begin = CLOCKS[case]
    path = tmp_path / "film.webm"
    path.write_bytes(video(tmp_path, "libvpx-vp9", "webm", stamps=frames, sound_from=sound))
    data, _, _ = transcode(path, EncodingSpec(fps=Fraction(25), short_side=0))
    packed = numbers_shown(data)
    options = {"finder": VideoFinder(files={"film": path}), "embed_limit": 9.0 if embed else None}
    make_view({"film": [found(2.0, 2.5, "run", 0.9)]}, None, tmp_path / "view", title="clocks", **options)
    go(page, tmp_path / "view" / "videos" / "film.html")
    segment(page, 0).click()
    wait_for(page, lambda: (state := film(page))["paused"] and state["time"] > begin + 2.49)
    assert film(page)["time"] == pytest.approx(begin + 2.5, abs=0.01)  # Opus begins 7 ms early
    at, length = (float(part.removesuffix(" s")) for part in text(page, "#clock").split(" / "))
    assert at == pytest.approx(2.5, abs=0.01) and length == pytest.approx(len(packed) / 25, abs=0.04)
    if embed:  # a browser keeps the pictures of linked files to itself
        shown_number = wait_for(page, lambda: page.execute_script(NUMBER_SHOWN))
        assert abs(shown_number - packed[round(2.5 * 25)]) <= 1  # WebM counts milliseconds


def test_a_segment_chosen_before_the_video_is_read_is_played_from_its_start(page, tmp_path):
    path = tmp_path / "film.webm"
    path.write_bytes(video(tmp_path, "libvpx-vp9", "webm", stamps=range(75, 150)))  # its clock begins at 3 s
    view, options = tmp_path / "view", {"finder": VideoFinder(files={"film": path}), "embed_limit": 9.0}
    make_view({"film": [found(2.0, 2.5, "run", 0.9)]}, None, view, title="early", **options)
    key = "window.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }))"
    state = "document.querySelector('video').readyState"
    early = f"addEventListener('DOMContentLoaded', () => {{ window.before = {state}; {key}; }})"
    script = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": early})
    go(page, view / "videos" / "film.html")
    page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert page.execute_script("return window.before") == 0
    wait_for(page, lambda: film(page)["time"] == pytest.approx(5.0, abs=0.01))
    press(page, " ")  # a browser plays nothing that nobody pressed
    wait_for(page, lambda: (state := film(page))["paused"] and state["time"] > 5.49)
    assert film(page)["time"] == pytest.approx(5.5, abs=0.01)


NUMBER_SHOWN = """
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.drawImage(document.querySelector("video"), 0, 0, 64, 64);
  const blocks = [10, 32, 53].flatMap((row) => [8, 24, 40, 56].map((column) => [column, row]));
  const bright = ([x, y]) => canvas.getImageData(x, y, 1, 1).data[0] > 125;
  return blocks.reduce((sum, block, bit) => sum + (bright(block) ? 1 << bit : 0), 0);
"""
