"""Make docs/viewer.png, the README's picture: the viewer's page of one video of a finished `make demo`.

python docs/make_picture.py            # runs/demo and data/demo
python docs/make_picture.py RUN DATA   # another run, and the packed data set it was trained on

Needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver) and selenium (extra "dev").
"""

from __future__ import annotations

import shutil
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import click  # noqa: E402

from pipeline.annotations import Video  # noqa: E402
from pipeline.files import write_bytes  # noqa: E402
from tools.viewer.build import make_view  # noqa: E402
from tools.viewer.media import VideoFinder  # noqa: E402
from train.detections import read_detections  # noqa: E402
from train.evaluation.files import read_ground_truth  # noqa: E402

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTH, HEIGHT = 1120, 640  # pixels of the window: narrower, the table would lose columns
MARGIN = 18  # pixels under the last line
MAX_BYTES = 200_000
TIMEOUT = 20.0  # seconds for the video to load and to seek

# Chooses the detection of the highest score, seeks to its middle, ends when the frame there is on the screen.
SHOW = """
const done = arguments[0];
const video = document.querySelector("video");
const row = document.querySelector("#rows tr");
const [start, end] = [1, 2].map((column) => parseFloat(row.cells[column].textContent));
const until = (condition, then) => (condition() ? then() : setTimeout(until, 50, condition, then));
until(() => video.readyState >= 1, () => {
  row.click();
  video.pause();
  video.controls = false;
  video.currentTime = (start + end) / 2;
  until(() => video.readyState >= 2 && !video.seeking, () => setTimeout(done, 300));
});
"""


def example_of(ground_truth: Mapping[str, Video]) -> str:
    """The video with the most classes, then the most actions, then the first by name."""
    return min(
        ground_truth,
        key=lambda key: (
            -len({action.label for action in ground_truth[key].actions}),
            -len(ground_truth[key].actions),
            key,
        ),
    )


@contextmanager
def browser() -> Iterator[Chrome]:
    """A headless Chromium without its own scroll bars."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if programs[0] is None or programs[1] is None:
        raise click.ClickException(
            "no chromium and chromedriver here: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    driver.set_script_timeout(TIMEOUT)
    try:
        yield driver
    finally:
        driver.quit()


def picture_of(page: Path) -> bytes:
    """PNG of a viewer page down to its legend, with a detection chosen."""
    with browser() as driver:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        driver.execute_async_script(SHOW)
        bottom = driver.execute_script("return document.getElementById('key').getBoundingClientRect().bottom")
        area = {"x": 0, "y": 0, "width": WIDTH, "height": bottom + MARGIN, "scale": 1}
        options = {"format": "png", "captureBeyondViewport": True, "clip": area}
        return b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"])


@click.command()
@click.argument("run", type=click.Path(path_type=Path), default=ROOT / "runs" / "demo")
@click.argument("data", type=click.Path(path_type=Path), default=ROOT / "data" / "demo")
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "viewer.png", help="The picture."
)
def main(run: Path, data: Path, out: Path) -> None:
    """Make the picture of a video of DATA with the detections of RUN."""
    detections = read_detections(run)
    annotated = read_ground_truth(data, None, hint=detections.subset)
    key = example_of(annotated.videos)
    finder = VideoFinder.open((data,))
    finder.match_names(annotated.names)
    with TemporaryDirectory() as folder:
        view = make_view(detections.results, annotated.videos, Path(folder), title="demo", finder=finder)
        png = picture_of(view.page_of(key))
    if len(png) > MAX_BYTES:
        raise click.ClickException(f"{len(png):,} bytes, want at most {MAX_BYTES:,}: lower HEIGHT")
    write_bytes(out, png)
    click.echo(f"{out}: {key}, {len(png):,} bytes")


if __name__ == "__main__":
    main()
