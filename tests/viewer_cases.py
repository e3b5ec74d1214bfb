"""Videos, detections and hostile names for the tests of the viewer; what its page holds in a browser."""

from __future__ import annotations

import time

import metric_cases
import numpy as np
from metric_cases import found

from pipeline.annotations import Video

EVIL = "</script><img src=x onerror=\"document.title='broken'\">&{{data}}'\u2028"


def video(key: str, *actions: tuple[float, float, str], duration: float | None = 8.0) -> Video:
    return metric_cases.video(key, *actions, duration=duration)


GROUND_TRUTH = {
    "good": video("good", (1, 2, "jump"), (3, 5, "run")),
    "half": video("half", (0, 4, "run"), (5, 6, "run")),
    "empty": video("empty"),
    "bad": video("bad", (0, 2, "jump")),
}
RESULTS = {
    "good": [
        found(3, 5, "run", 0.8),
        found(1, 2, "jump", 0.9),
        found(1, 2.5, "jump", 0.3),
        found(6, 7, "fly", 0.2),
    ],
    "half": [found(0, 2, "run", 0.7), found(0, 3, "run", 0.6), found(5.5, 7, "run", 0.1)],
    "empty": [],
    "bad": [found(4, 6, "jump", 0.75)],
}  # F1 at tIoU 0.5 is best at 0.7: three right of four, of five


def many_segments() -> tuple[dict, dict]:
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, 1700, 620)
    rows = [
        (s, s + w, f"class {c}")
        for s, w, c in zip(starts, rng.uniform(2, 60, 620), rng.integers(0, 20, 620), strict=True)
    ]
    results = [found(*row, score) for row, score in zip(rows[:500], rng.uniform(0.01, 1, 500), strict=True)]
    return {"big": video("big", *rows[500:], duration=1800.0)}, {"big": results}


# --- what a page in the browser holds; `page` is the driver of the fixture of that name ---


def go(page, path):
    """Opens the page and waits until nothing draws anew by itself: frames, the video's first picture."""
    page.get(path.as_uri())
    page.execute_async_script(
        "const done = arguments[0], film = document.querySelector('video');"
        "const settle = () => requestAnimationFrame(() => requestAnimationFrame(done));"
        "if (!film || !film.src || film.readyState > 1 || film.error) settle();"
        "else for (const event of ['loadeddata', 'error']) film.addEventListener(event, settle);"
    )


def shown(page) -> list[int]:
    """Numbers of the detections in the timeline, by time."""
    code = "return [...document.querySelectorAll('#lanes .det')]"
    query = f"{code}.map((e) => [e.x.baseVal.value, +e.dataset.detection])"
    return [number for _, number in sorted(page.execute_script(query))]


def listed(page) -> list[int]:
    return page.execute_script(
        "return [...document.querySelectorAll('#rows tr')].map((r) => +r.dataset.detection)"
    )


def text(page, query) -> str:
    return page.execute_script("return document.querySelector(arguments[0]).innerText", query)


def slide(page, position):
    """Moves the slider as a hand would: value, then event. Returns the milliseconds it took, with layout."""
    return page.execute_script(
        "const slider = document.getElementById('threshold'); slider.value = arguments[0];"
        "const before = performance.now(); slider.dispatchEvent(new Event('input', {bubbles: true}));"
        "document.body.getBoundingClientRect(); return performance.now() - before",
        position,
    )


def press(page, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(page).send_keys(key).perform()


def film(page) -> dict:
    return page.execute_script(
        "const v = document.querySelector('video');"
        "return {time: v.currentTime, paused: v.paused, ready: v.readyState}"
    )


def wait_for(page, condition, seconds=6.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s on {page.title!r}: {text(page, 'main')[:500]!r}")


def segment(page, number):
    return page.find_element("css selector", f"#lanes .det[data-detection='{number}']")


def view_span(page) -> tuple[float, float]:
    """Share of the overview that its window covers: (start, width)."""
    query = (
        "const o = document.getElementById('overview'), w = o.querySelector('.window');"
        "return [w.x.baseVal.value / o.clientWidth, w.width.baseVal.value / o.clientWidth]"
    )
    return tuple(page.execute_script(query))


def names_of(page) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('#videos .name')].map((n) => n.textContent)"
    )
