"""Packs the videos of a plan into a folder of shards; killed and started again, it continues where it was.

Shard i holds the packed videos i * size to (i + 1) * size - 1 of the plan's order, whichever worker was
faster: an interrupted run writes the bytes of an undisturbed one. dataset.json comes last.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..annotations import Repair
from ..dataset import Dataset
from ..files import TEMPORARY, remove_folder, remove_left, sha256_of, write_text
from ..lock import locked
from ..records import DESCRIPTION, Shard
from ..text import short
from .journal import DAMAGED, Journal, read_plan
from .pack_video import Job, PackResult, pack_video
from .shard_writer import ShardWriter, write_dataset
from .workers import run_jobs

WORK, REJECTS = ".work", "rejects.csv"
TAR = re.compile(r"\d{5}\.tar")
OUTPUTS = re.compile(r"\d{5}\.(tar|idx)|dataset\.json|rejects\.csv")
PARTIAL = re.compile(rf"{TEMPORARY.pattern}|\d{{5}}\.tar\.tmp")

Progress = Callable[[Iterable[PackResult]], Iterable[PackResult]]


@dataclass(frozen=True)
class PackingPlan:
    """What a data set is made of: jobs in their final order, class names, shard size in videos.

    packing: how the videos are packed, as dataset.json states it. unnamed: the videos of the folder that no
    annotation names.
    """

    jobs: tuple[Job, ...]
    classes: tuple[str, ...]
    shard_size: int
    packing: dict[str, Any]
    unnamed: tuple[str, ...] = ()

    def digest(self) -> str:
        """sha256 of all that decides the data set: packing, classes, annotations, file names and sizes."""
        sizes = [(job.folder / job.file).stat().st_size if job.file else job.missing for job in self.jobs]
        jobs = [(job.key, job.source, asdict(job.video), job.file) for job in self.jobs]
        text = json.dumps([jobs, sizes, self.classes, self.shard_size, self.packing], sort_keys=True)
        return sha256_of(text)


def pack(plan: PackingPlan, out: Path, *, workers: int, progress: Progress) -> list[PackResult]:
    """Pack the plan into `out`, or go on with what an earlier run of the same plan began.

    progress: wraps the iteration over videos. Returns the result of every video, in the plan's order.
    Raises ValueError when not one video could be packed; then nothing but rejects.csv is left.
    """
    with _open_journal(plan, out) as journal:
        results = list(progress(_pack_videos(plan, journal, out, workers)))
        _check_labels(plan, results, out)
        shards = journal.shards()
        shard_of = {key: record.shard.file for record in shards for key in record.keys}
        results = [_with_shard(result, shard_of.get(result.video.key)) for result in results]
        write_rejects(out / REJECTS, results)
        if shards:
            write_dataset(
                out,
                classes=plan.classes,
                videos=[result.video for result in results],
                shards=[record.shard for record in shards],
                packing={**plan.packing, "plan": plan.digest()},
                repairs=[repair for result in results for repair in result.repairs],
            )
    remove_folder(out / WORK)
    if not shards:
        video = results[0].video
        raise ValueError(
            f"{out}: none of {len(results)} videos could be packed; {video.source}: {video.reject} (all "
            f"reasons are in {REJECTS})"
        )
    return results


def _check_labels(plan: PackingPlan, results: Iterable[PackResult], out: Path) -> None:
    """ValueError for a recorded result with an action that the plan's annotations cannot have given it."""
    for video in (result.video for result in results):
        unknown = next((action.label for action in video.actions if action.label not in plan.classes), None)
        if unknown is not None:
            raise ValueError(
                f"{out / WORK}: the record of {video.key} is damaged, {short(unknown)} is no class; {DAMAGED}"
            )


def _with_shard(result: PackResult, shard: str | None) -> PackResult:
    return replace(result, video=replace(result.video, shard=shard))


def _pack_videos(plan: PackingPlan, journal: Journal, out: Path, workers: int) -> Iterator[PackResult]:
    """Do the jobs and write each shard as soon as its videos are encoded."""
    shards = journal.shards()
    done = {key for record in shards for key in record.keys}
    number = len(shards)
    ready: list[PackResult] = []
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


def load_complete_dataset(plan: PackingPlan, out: Path) -> list[PackResult]:
    """The result of every video, if `out` holds the whole data set of this very plan; else nothing.

    Raises ValueError, naming the difference, when it holds something else; and when one of its tars is cut.
    """
    if not (out / DESCRIPTION).exists():
        return []
    remove_left(out)
    dataset = Dataset.open(out)
    packing = dict(dataset.packing)
    _check_same_plan(plan, out, packing.pop("plan", None), packing)
    for name in dataset.shards:
        dataset.check_size(name)
    remove_folder(out / WORK)  # a run that was killed after its last file left it
    repairs: dict[str, list[Repair]] = {}
    for repair in dataset.repairs:
        repairs.setdefault(repair.video, []).append(repair)
    return [PackResult(video, tuple(repairs.get(video.source, ()))) for video in dataset.videos.values()]


def remove_outputs(out: Path) -> None:
    """Remove what make-shards wrote into `out`, and nothing else; ValueError if another one is at work."""
    lock = out / WORK / "lock"
    with locked(lock, where=out, what="make-shards") if lock.parent.is_dir() else nullcontext():
        (out / DESCRIPTION).unlink(missing_ok=True)  # first: what is left if this is killed is no data set
        remove_folder(out / WORK)
    for path in out.iterdir() if out.is_dir() else ():
        if OUTPUTS.fullmatch(path.name) or PARTIAL.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _open_journal(plan: PackingPlan, out: Path) -> Iterator[Journal]:
    """The journal of this plan, new or continued; no other run can use it meanwhile."""
    plan_file = out / WORK / "plan.json"
    if not plan_file.exists() and any(TAR.fullmatch(path.name) for path in out.glob("*.tar")):
        raise ValueError(f"{out}: holds tars of something else, want another --out, or --force")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    with locked(out / WORK / "lock", where=out, what="make-shards"):
        if plan_file.exists():
            entry = read_plan(plan_file)
            _check_same_plan(plan, out, entry.plan, entry.settings)
        else:
            write_text(plan_file, json.dumps({"plan": plan.digest(), "settings": plan.packing}))
        for path in out.iterdir():
            if PARTIAL.fullmatch(path.name):
                _remove(path)
        yield Journal(out / WORK)


def _check_same_plan(plan: PackingPlan, out: Path, digest: str | None, packing: dict[str, Any]) -> None:
    """Raises ValueError, naming a difference, unless `digest` and `packing` are those of `plan`."""
    if digest == plan.digest():
        return
    wanted = json.loads(json.dumps(plan.packing))
    differ = [name for name in sorted({*packing, *wanted}) if packing.get(name) != wanted.get(name)]
    difference = "other videos or annotations"
    if differ:
        difference = f"{differ[0]} {short(packing.get(differ[0]))}, not {short(wanted.get(differ[0]))}"
    raise ValueError(f"{out}: was begun with {difference}; want another --out, or --force to start again")
