"""Tiny stand-ins for the files that the manual's commands name; for tests/test_docs.py."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from tiny_run import SMALL

from model.backbones import build_backbone
from tools.labels.formats import FORMATS, format_of_output
from tools.labels.labelled import LabelFile, Report
from train.detections import write_detections
from train.settings import RECIPES, dump_settings, load_settings

# What makes any run of the manual one of seconds.
TINY = {**SMALL, "encoder.backbone": "r2plus1d_tiny", "encoder.steps_per_clip": 1, "run.epochs": 1}
TINY |= {"encoder.weights": "null", "data.window_seconds": "null", "data.color": 0}


def csv_of(annotations: Path, target: Path) -> None:
    """The annotations of an ActivityNet-style JSON file as CSV."""
    with target.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "start", "end", "label", "subset"])
        for name, video in json.loads(annotations.read_text())["database"].items():
            for action in video["annotations"]:
                table.writerow([name, *action["segment"], action["label"], video["subset"]])


def renamed_subsets(annotations: Path, target: Path) -> None:
    """The same annotations under THUMOS-14's names of subsets."""
    text = annotations.read_text().replace('"training"', '"train"').replace('"validation"', '"test"')
    target.write_text(text)


def foreign_checkpoint(target: Path) -> None:
    """A checkpoint as TSP writes them, of the tiny backbone."""
    torch.manual_seed(0)
    weights = build_backbone("r2plus1d_tiny").state_dict()
    torch.save({"model": {f"features.{name}": tensor for name, tensor in weights.items()}}, target)


def external_scores(annotations: Path, target: Path) -> None:
    """Video-level scores of a classifier, as the field's files have them."""
    names = json.loads(annotations.read_text())["database"]
    target.write_text(json.dumps({name: {"swing": 0.7, "slide-left": 0.2} for name in names}))


def blocked(annotations: Path, target: Path) -> None:
    """One of the videos of the validation subset."""
    database = json.loads(annotations.read_text())["database"]
    target.write_text(json.dumps([next(k for k, v in database.items() if v["subset"] == "validation")]))


def foreign_features(annotations: Path, target: Path) -> None:
    """A file of features for each video, every 4 frames at 30 a second."""
    target.mkdir()
    for name, video in json.loads(annotations.read_text())["database"].items():
        np.save(target / f"{name}.npy", np.zeros((round(video["duration"] * 7.5), 16), dtype=np.float32))


def exported(annotations: Path, target: Path) -> None:
    """Annotations as a labelling tool exports them, in the format of the ending."""
    name = format_of_output(target)
    own = LabelFile(annotations, annotations.read_text(), Fraction(15))
    videos = FORMATS["activitynet"].read(own, Report())
    chosen = videos[:1] if FORMATS[name].per_video else videos
    target.write_text(FORMATS[name].write(chosen, Report()))


def found(annotations: Path, target: Path) -> None:
    """Detections in one of the annotated videos."""
    key = next(iter(json.loads(annotations.read_text())["database"]))
    detection = {"segment": [1.0, 2.0], "label": "swing", "score": 0.8}
    write_detections(target, {key: [detection]}, metadata={})


def tiny_recipe(target: Path) -> None:
    """The recipe for people's own videos, made tiny: what trains from Python has no command line to do it."""
    settings = load_settings(RECIPES / "own_videos.yaml", [f"{name}={value}" for name, value in TINY.items()])
    target.write_text(dump_settings(settings))


def classifier_checkpoint(target: Path) -> None:
    """I3D's file as pytorch-i3d has it, of fresh weights, with a classifier of two classes."""
    classifier = {"logits.conv3d.weight": torch.ones(2, 1024, 1, 1, 1), "logits.conv3d.bias": torch.zeros(2)}
    torch.save(build_backbone("i3d").state_dict() | classifier, target)


def prepare(name: str, made: Path, target: Path) -> None:
    """Put the stand-in of this name at `target`; made: a folder of raw videos, shards and a complete run."""
    videos, annotations = made / "raw" / "videos", made / "raw" / "annotations.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[], object]] = {
        "annotations.csv": lambda: csv_of(annotations, target),
        "match.mp4": lambda: shutil.copy(videos / "valid_0000.mp4", target),
        "predictions/detections.json": lambda: found(annotations, target),
        "mine.yaml": lambda: tiny_recipe(target),
        "data/demo-videos/videos": lambda: shutil.copytree(videos, target),
        "anet/activity_net.v1-3.min.json": lambda: shutil.copy(annotations, target),
        "annotations.json": lambda: shutil.copy(annotations, target),
        "i3d_features": lambda: foreign_features(annotations, target),
        "anet/blocked.json": lambda: blocked(annotations, target),
        "thumos/thumos_gt.json": lambda: renamed_subsets(annotations, target),
        "rgb_imagenet.pt": lambda: classifier_checkpoint(target),
        "label_map.txt": lambda: target.write_text("running\njumping\n"),
        "cuhk_val.json": lambda: external_scores(annotations, target),
    }
    if name in makers:
        makers[name]()
    elif name.endswith((".boris", ".eaf")):
        exported(annotations, target)
    elif name.endswith(".pth"):
        foreign_checkpoint(target)
    elif name.startswith("runs/"):
        shutil.copytree(made / "run", target, symlinks=True)
    elif name.startswith("data/"):
        shutil.copytree(made / "shards", target)
    else:
        target.mkdir()
        chosen = {"recordings": "train_*", "more": "valid_*"}.get(name, "*")
        for file in videos.glob(chosen):
            shutil.copy(file, target)
