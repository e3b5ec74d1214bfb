"""What every test may use: real data, a GPU gate, a small number of threads, a browser with viewer pages."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side: more threads than cores crawl
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="leantad-state-")  # the key of train/trust.py
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)


# Files whose tests take longest; begun first, so that no worker is left alone with one of them at the end.
LONGEST = (
    "kill",
    "real_video",
    "train_faults",
    "train_engine",
    "tools_planning_deepspeed_memory",
    "train_loop",
    "docs",
)
LONGEST += ("real_studies", "tools_make_shards", "model_rewire_families", "tools_plan")


def started_at(item: pytest.Item) -> int:
    """When the file of a test is begun: its index among LONGEST, or after all of them."""
    name = item.path.stem.removeprefix("test_")
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items):
    """GPU tests skip without a GPU; LEANTAD_GPU=1 (the GPU lane) turns that skip into a failure."""
    items.sort(key=started_at)
    for item in items:
        if item.get_closest_marker("gpu") and not os.environ.get("LEANTAD_GPU"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device; LEANTAD_GPU=1 makes this a failure"))


@pytest.fixture(autouse=True)
def no_real_time():
    """Fails the test that leaves this thread in real time, as an encoder does to root; others starve."""
    yield
    if not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER:
        return
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    pytest.fail("this thread was left in real time: encode in a thread of its own")


@pytest.fixture(scope="session")
def shared_real() -> Path:
    """The folder of real annotations, results and videos beside the checkout (not part of the project)."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        message = f"{folder} is not here: real annotations, results and videos"
        if os.environ.get("CI") and not os.environ.get("LEANTAD_WITHOUT_REAL_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def with_timm() -> dict[str, str]:
    """The environment of a process that imports the timm and torchvision which `make setup` puts apart."""
    folder = Path(sys.prefix) / "image-networks"
    if not folder.is_dir():
        message = f"{folder} is not here: timm and torchvision, which make setup installs"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    paths = [str(ROOT / "tests" / "image_networks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="session")
def browser_programs() -> tuple[str, str]:
    """Paths of chromium and chromedriver."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs):
        message = "no chromium and chromedriver here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return programs


@pytest.fixture(scope="module")
def chromium(browser_programs):
    """One headless Chromium for the module."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser_programs[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,850"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(browser_programs[1]))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium):
    """The browser; after the test its console must be empty."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A view of GROUND_TRUTH and RESULTS: a video for "good", one that no browser plays for "half"."""
    from painted_video import painted_video
    from viewer_cases import GROUND_TRUTH, RESULTS

    from tools.viewer.build import make_view
    from tools.viewer.media import VideoFinder

    folder = tmp_path_factory.mktemp("site")
    films = folder / "films"
    films.mkdir()
    (films / "good.webm").write_bytes(painted_video(200, container="webm"))  # 8 s
    (films / "half.avi").write_bytes(painted_video(10, codec="mpeg4", container="avi"))
    make_view(RESULTS, GROUND_TRUTH, folder / "view", title="site", finder=VideoFinder.open((films,)))
    return folder / "view"
