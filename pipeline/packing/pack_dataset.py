"""Pack a plan of videos into a folder of shards; killed and started again, it continues where it was.

Shard i holds the packed videos i * size to (i + 1) * size - 1 of the plan's order, whichever worker was
faster: an interrupted run writes the bytes of an undisturbed one. dataset.json comes last.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..annotations import Repair
from ..dataset import Dataset
from ..files import TEMPORARY, sha256_of, write_text
from ..records import DESCRIPTION, Shard
from .journal import Journal
from .pack_video import Job, PackResult, pack_video
from .shard_writer import ShardWriter, write_dataset
from .workers import run_jobs

WORK, REJECTS = ".work", "rejects.csv"
OURS = re.compile(r"\d{5}\.(tar|idx)|dataset\.json|rejects\.csv")
PARTIAL = re.compile(rf"{TEMPORARY.pattern}|\d{{5}}\.tar\.tmp")

Progress = Callable[[Iterable[PackResult]], Iterable[PackResult]]


@dataclass(frozen=True)
class Plan:
    """What a data set is made of: jobs in their final order, class names, and the settings to write down.

    unnamed: the videos of the folder that no annotation names.
    """

    jobs: tuple[Job, ...]
    classes: tuple[str, ...]
    shard_size: int
    settings: dict[str, Any]
    unnamed: tuple[str, ...] = ()

    def digest(self) -> str:
        """sha256 of all that decides the result: settings, classes, annotations, file names and sizes."""
        sizes = [(job.folder / job.file).stat().st_size if job.file else job.missing for job in self.jobs]
        jobs = [(job.key, job.source, asdict(job.video), job.file) for job in self.jobs]
        text = json.dumps([jobs, sizes, self.classes, self.shard_size, self.settings], sort_keys=True)
        return sha256_of(text)


def pack(plan: Plan, out: Path, *, workers: int, progress: Progress) -> list[PackResult]:
    """Pack the plan into `out`, or finish what an earlier run of the same plan began.

    progress: wraps the iteration over videos. Returns what became of every video, in the plan's order.
    Raises ValueError when not one video could be packed; then nothing but rejects.csv is left.
    """
    with _journal(plan, out) as journal:
        results = []
        for result in progress(_packed(plan, journal, out, workers)):
            results.append(result)
        shards = journal.shards()
        places = {key: shard.file for shard, keys in shards for key in keys}
        results = [_placed(result, places) for result in results]
        write_rejects(out / REJECTS, results)
        if places:
            write_dataset(
                out,
                classes=plan.classes,
                videos=[result.video for result in results],
                shards=[shard for shard, _ in shards],
                packing={**plan.settings, "plan": plan.digest()},
                repairs=[repair for result in results for repair in result.repairs],
            )
    shutil.rmtree(out / WORK)
    if not places:
        video = results[0].video
        raise ValueError(
            f"{out}: none of {len(results)} videos could be packed; {video.source}: {video.reject} (all "
            f"reasons are in {REJECTS})"
        )
    return results


def _placed(result: PackResult, places: dict[str, str]) -> PackResult:
    return replace(result, video=replace(result.video, shard=places.get(result.video.key)))


def _packed(plan: Plan, journal: Journal, out: Path, workers: int) -> Iterator[PackResult]:
    """Do the jobs and write each shard as soon as its videos are there."""
    shards = journal.shards()
    done = {key for _, keys in shards for key in keys}
    number, ready = len(shards), []
    for result in run_jobs(plan.jobs, journal, pack_video, workers=workers):
        if result.video.reject is None and result.video.key not in done:
            ready.append(result)
        if len(ready) == plan.shard_size:
            _write_shard(number, ready, journal, out)
            number, ready = number + 1, []
        yield result
    if ready:
        _write_shard(number, ready, journal, out)


def _write_shard(number: int, results: list[PackResult], journal: Journal, out: Path) -> Shard:
    with ShardWriter(out, f"{number:05d}") as writer:
        for result in results:
            writer.write(result.video, journal.encoded_path(result.video.key).read_bytes())
    assert writer.shard is not None
    journal.commit_shard(writer.shard, [result.video.key for result in results])
    return writer.shard


def write_rejects(path: Path, results: Iterable[PackResult]) -> None:
    """Write the table of rejected videos: video, subset, file, reason; only the header when there is none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "subset", "file", "reason"])
    for video in (result.video for result in results):
        if video.reject is not None:
            table.writerow([video.source, video.subset, video.file or "", video.reject])
    write_text(path, text.getvalue())


def finished(plan: Plan, out: Path) -> list[PackResult]:
    """What became of every video, if `out` holds the whole data set of this very plan; else nothing.

    Raises ValueError, naming the difference, when it holds something else; and when one of its tars is cut.
    """
    if not (out / DESCRIPTION).exists():
        return []
    dataset = Dataset.open(out)
    there = dict(dataset.packing)
    _same_plan(plan, out, there.pop("plan", None), there)
    for name in dataset.shards:
        dataset.check_size(name)
    repairs: dict[str, list[Repair]] = {}
    for repair in dataset.repairs:
        repairs.setdefault(repair.video, []).append(repair)
    return [PackResult(video, tuple(repairs.get(video.source, ()))) for video in dataset.videos.values()]


def remove_ours(out: Path) -> None:
    """Remove what make-shards wrote into `out`, and nothing else."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    for path in out.iterdir() if out.is_dir() else ():
        if OURS.fullmatch(path.name) or PARTIAL.fullmatch(path.name):
            path.unlink()


@contextmanager
def _journal(plan: Plan, out: Path) -> Iterator[Journal]:
    """The journal of this plan, new or continued; no other run can use it meanwhile."""
    started = out / WORK / "plan.json"
    if not started.exists() and any(OURS.fullmatch(path.name) for path in out.glob("*.tar")):
        raise ValueError(f"{out}: holds tars of something else, want another --out, or --force")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    with open(out / WORK / "lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{out}: another make-shards is writing here, want one at a time") from None
        if started.exists():
            entry = json.loads(started.read_text("utf-8"))
            _same_plan(plan, out, entry["plan"], entry["settings"])
        else:
            entry = {"plan": plan.digest(), "settings": plan.settings}
            write_text(started, json.dumps(entry))
        for path in out.iterdir():
            if PARTIAL.fullmatch(path.name):
                path.unlink()
        yield Journal(out / WORK)


def _same_plan(plan: Plan, out: Path, digest: str | None, settings: dict[str, Any]) -> None:
    if digest == plan.digest():
        return
    mine = json.loads(json.dumps(plan.settings))
    names = [name for name in sorted({*settings, *mine}) if settings.get(name) != mine.get(name)]
    what = "other videos or annotations"
    if names:
        what = f"{names[0]} {settings.get(names[0])!r}, not {mine.get(names[0])!r}"
    raise ValueError(f"{out}: was begun with {what}; want another --out, or --force to start again")
