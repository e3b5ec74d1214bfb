"""CVAT's XML 1.1 of videos: tracks, and tags of frames ("CVAT for video 1.1", "CVAT for images 1.1").

A track is visible from a shape that is not `outside` to the next one that is (whose frame it does not have
any more), or to its last shape. Frames are those of the video, also where the task begins at a `start_frame`
or takes every n-th (`frame_filter`: step=n); tags of neighbouring frames are one action. CVAT states no frame
rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from xml.etree.ElementTree import Element, SubElement

from pipeline.text import short

from .labelled import (
    MODIFIER,
    REGION,
    LabelFile,
    LabelledVideo,
    Report,
    TimedLabel,
    by_start,
    frames_of,
    label_names,
    lose_scores,
    rate_of,
    seconds_of,
    timed,
)
from .text_files import number
from .xml_files import attribute, parse_xml, xml_text

SHAPES = ("box", "polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
Frames = tuple[int, int, str]  # the first frame, the first one after it, the label


@dataclass(frozen=True)
class Task:
    """What the meta data say of one video: its name, first frame, and how far apart its frames are."""

    name: str
    start: int = 0
    step: int = 1


def read(file: LabelFile, report: Report) -> list[LabelledVideo]:
    """The tracks and tags of each task of the file."""
    root = parse_xml(file.path, file.text)
    if root.tag != "annotations":
        raise ValueError(f"{file.path}: its root is {short(root.tag)}, want annotations, which CVAT writes")
    tasks = tasks_of(file, root)
    fps = file.frame_rate()
    found: dict[str, list[Frames]] = {name: [] for name in tasks}
    tags: dict[tuple[str, str], set[int]] = {}
    for track in root.iter("track"):
        task = _task_of(track, tasks)
        label = attribute(file.path, track, "label")
        found[task] += [(start, end, label) for start, end in visible(file, track, tasks[task].step, report)]
    for frame, task, tag in tags_of(file, root, tasks, report):
        tags.setdefault((task, attribute(file.path, tag, "label")), set()).add(frame)
    for (task, label), frames in tags.items():
        found[task] += [(start, end, label) for start, end in runs(frames, tasks[task].step)]
    return [_video(tasks[name], frames, fps, report) for name, frames in found.items()]


def tasks_of(file: LabelFile, root: Element) -> dict[str, Task]:
    """The tasks of the file by id; one without id stands for the whole file."""
    elements = list(root.iter("task")) or list(root.iter("job"))
    tasks = {}
    for element in elements:
        name = element.findtext("source") or root.findtext("meta/source") or element.findtext("name") or ""
        step = (element.findtext("frame_filter") or "").replace(" ", "").removeprefix("step=") or "1"
        start = element.findtext("start_frame") or "0"
        tasks[element.findtext("id") or ""] = Task(
            name.strip() or file.video_name,
            int(number(f"{file.path}: start_frame", start)),
            max(int(number(f"{file.path}: frame_filter", step)), 1),
        )
    return tasks or {"": Task(file.video_name)}


def _task_of(element: Element, tasks: dict[str, Task]) -> str:
    """The id of the task that a track or image is of."""
    stated = element.get("task_id", "")
    return stated if stated in tasks else next(iter(tasks))


def visible(file: LabelFile, track: Element, step: int, report: Report) -> list[tuple[int, int]]:
    """(first frame, first frame after it) of each stretch in which a track is visible."""
    shapes = [shape for shape in track if shape.tag in SHAPES]
    report.lose(MODIFIER, sum(len(shape.findall("attribute")) > 0 for shape in shapes[:1]))
    states = sorted((_frame(file, shape, "frame"), _is_outside(shape)) for shape in shapes)
    stretches: list[tuple[int, int]] = []
    begin: int | None = None
    for frame, outside in states:
        if outside and begin is not None:
            stretches.append((begin, frame))
            begin = None
        elif not outside and begin is None:
            begin = frame
    if begin is not None:
        stretches.append((begin, states[-1][0] + step))
    return stretches


def _is_outside(shape: Element) -> bool:
    """Whether a shape is not visible; a skeleton is not where none of its points is."""
    points = [point.get("outside") == "1" for point in shape if point.tag in SHAPES]
    return shape.get("outside") == "1" or (bool(points) and all(points))


def tags_of(
    file: LabelFile, root: Element, tasks: dict[str, Task], report: Report
) -> Iterable[tuple[int, str, Element]]:
    """(frame, task, tag) of the tags of frames; shapes drawn on single frames are counted."""
    for image in root.iter("image"):
        report.lose(REGION, sum(child.tag in SHAPES for child in image))
        for tag in image.iter("tag"):
            yield _frame(file, image, "id"), _task_of(image, tasks), tag
    for tag in root.findall("tag"):
        yield _frame(file, tag, "frame"), _task_of(tag, tasks), tag


def _frame(file: LabelFile, element: Element, name: str) -> int:
    return int(number(f"{file.path}: {element.tag}, {name}", attribute(file.path, element, name)))


def runs(frames: Iterable[int], step: int) -> list[tuple[int, int]]:
    """(first frame, first frame after it) of frames that follow each other, `step` apart."""
    stretches: list[tuple[int, int]] = []
    for frame in sorted(frames):
        if stretches and frame <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], frame + step)
        else:
            stretches.append((frame, frame + step))
    return stretches


def _video(task: Task, frames: list[Frames], fps: Fraction, report: Report) -> LabelledVideo:
    """The video of a task; frames before its first one can only be counted from there."""
    shift = 0
    if task.start and any(start < task.start for start, _, _ in frames):
        shift = task.start
        report.remark(f"frames below start_frame {task.start}: all are counted from there")
    labels = [
        item
        for start, end, label in frames
        for item in timed(report, seconds_of(start + shift, fps), seconds_of(end + shift, fps), label)
    ]
    return LabelledVideo(task.name, by_start(labels), fps=fps)


def write(videos: Sequence[LabelledVideo], report: Report) -> str:
    """The annotations of one video: a track for each label, a box in the corner while it lasts.

    CVAT counts the frames that it decodes, from the first one; a label before that is on frame 0.
    """
    lose_scores(videos, report, "CVAT")
    (video,) = videos
    fps = rate_of(video)
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    spans = [frames_of(_from_first_frame(item, video.begin), fps) for item in video.labels]
    last = max([end for _, end in spans], default=1)
    size = last + 1 if video.duration is None else max(last, round((video.duration - video.begin) * fps))
    for name, text in (("name", video.name), ("size", size), ("mode", "interpolation"), ("start_frame", 0)):
        SubElement(task, name).text = str(text)
    SubElement(task, "stop_frame").text = str(size - 1)
    labels = SubElement(task, "labels")
    for label in label_names(videos):
        SubElement(SubElement(labels, "label"), "name").text = label
    SubElement(task, "source").text = video.name
    for index, (item, span) in enumerate(zip(video.labels, spans, strict=True)):
        _write_track(root, index, item, span)
    return xml_text(root)


def _from_first_frame(item: TimedLabel, begin: Fraction) -> TimedLabel:
    """The label in seconds from the first frame, which is shown at `begin`."""
    start, end = (max(seconds - float(begin), 0.0) for seconds in (item.start, item.end))
    return replace(item, start=start, end=end)


def _write_track(root: Element, index: int, item: TimedLabel, span: tuple[int, int]) -> None:
    track = SubElement(root, "track", id=str(index), label=item.label, source="file")
    for frame, outside in zip(span, ("0", "1"), strict=True):
        corners = {"xtl": "0.00", "ytl": "0.00", "xbr": "16.00", "ybr": "16.00", "z_order": "0"}
        state = {"frame": str(frame), "keyframe": "1", "outside": outside, "occluded": "0"}
        SubElement(track, "box", {**state, **corners})
