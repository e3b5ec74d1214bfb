"""Converts other projects' pretrained checkpoints to a backbone's weights: a safetensors file and a report.

Every tensor is renamed by the rules in tools/weights/names. Whose rules, and which backbone, is found by
trying all of them, unless told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.files import replacing
from pipeline.text import first_names

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.backbones import BACKBONES, build_backbone
from pipeline.files import file_sha256
from tools.weights.files import read_tensors
from tools.weights.names import leantad, r2plus1d, slowfast, tsm, video_swin, videomae
from train.cli import Command, Output, check_new_file, force_option, output_options

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]

ENOUGH = 0.95  # of the backbone's tensors must be in the file
_MMACTION2: dict[str, Convert] = {"mmaction2": slowfast.from_mmaction2}
_MMACTION2["opentad-re2tal"] = slowfast.from_opentad_re2tal
# by the beginning of a backbone's name, the longest that fits: source -> its rules
SOURCES: dict[str, dict[str, Convert]] = {
    "r2plus1d": {"torchvision": r2plus1d.from_torchvision, "tsp": r2plus1d.from_tsp},
    # Tensors do not tell PySlowFast's networks from mmaction2's with a lateral norm; slow frames differ.
    "slowfast": {"pyslowfast": slowfast.from_pyslowfast, "caffe2": slowfast.from_caffe2},
    "slowfast_50_mmaction2": _MMACTION2,
    "slowfast_101_mmaction2": _MMACTION2,
    "tsm": {"torchvision": tsm.from_torchvision, "mit": tsm.from_mit, "mmaction2": tsm.from_mmaction2},
    "video_swin": {
        "torchvision": video_swin.from_torchvision,
        "mmaction2": video_swin.from_mmaction2,
        "opentad-re2tal": video_swin.from_opentad_re2tal,
    },
    "videomae": {
        "videomae": videomae.from_videomae,
        "mmaction2": videomae.from_mmaction2,
        "huggingface": videomae.from_huggingface,
    },
}
NAMES = sorted({"leantad", *(source for sources in SOURCES.values() for source in sources)})


# ----------------------------------------------------------------------------------------------- matching


@dataclass(frozen=True)
class Match:
    """A checkpoint held against a backbone, by the rules of one source. Names are ours, but `unexpected`."""

    backbone: str
    source: str
    matched: dict[str, Tensor]
    missing: list[str]
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # in the file, in the backbone
    unexpected: list[str]

    @property
    def share(self) -> float:
        """Of the backbone's tensors, those matched: 0 to 1."""
        return len(self.matched) / (len(self.matched) + len(self.missing) + len(self.wrong_shape))

    def report(self) -> dict[str, Any]:
        """Plain values for people and machines."""
        return {
            "backbone": self.backbone,
            "source": self.source,
            "matched": len(self.matched),
            "missing": self.missing,
            "wrong_shape": {name: list(map(list, shapes)) for name, shapes in self.wrong_shape.items()},
            "unexpected": self.unexpected,
        }


def sources_of(backbone: str) -> dict[str, Convert]:
    """The sources whose checkpoints fit a backbone of this name."""
    family = max((name for name in SOURCES if backbone.startswith(name)), key=len)
    return {**SOURCES[family], "leantad": leantad.from_checkpoint}


@cache
def own_tensors(backbone: str) -> dict[str, Tensor]:
    """The backbone's state_dict, shapes only."""
    with torch.device("meta"):
        return build_backbone(backbone).state_dict()


def match(weights: dict[str, Tensor], backbone: str, source: str) -> Match | None:
    """The checkpoint's tensors as the backbone's; None if the source's rules cannot read it at all."""
    own = own_tensors(backbone)
    try:
        converted = sources_of(backbone)[source](weights)
    except ValueError:
        return None
    both = [name for name in own if name in converted]
    matched = {name: converted[name] for name in both if converted[name].shape == own[name].shape}
    wrong = {n: (tuple(converted[n].shape), tuple(own[n].shape)) for n in both if n not in matched}
    missing = [name for name in own if name not in converted]
    return Match(backbone, source, matched, missing, wrong, [name for name in converted if name not in own])


def best_match(weights: dict[str, Tensor], *, backbone: str | None, source: str | None) -> Match:
    """Of the backbones and sources allowed, the pair that matches most; of equals, with least left over.

    Raises ValueError if source and backbone do not go together, or less than ENOUGH is matched.
    """
    pairs = [
        (name, rules)
        for name in ([backbone] if backbone else BACKBONES)
        for rules in sources_of(name)
        if source in (None, rules)
    ]
    if not pairs:
        fitting = ", ".join(sources_of(backbone or ""))
        raise ValueError(f"--source: got {source}, want one that has {backbone}: {fitting}")
    found = [one for one in (match(weights, *pair) for pair in pairs) if one is not None]
    best = max(found, key=lambda one: (one.share, -len(one.unexpected)), default=None)
    if best is None or best.share < ENOUGH:
        raise ValueError(_refusal(weights, best, backbone))
    return best


def _refusal(weights: dict[str, Tensor], best: Match | None, backbone: str | None) -> str:
    what = backbone or "any backbone"
    if best is None:
        return f"weights: no rules read this file as {what}; its first tensor is {next(iter(weights))}"
    name, kind = (
        (best.missing[0], "missing") if best.missing else (next(iter(best.wrong_shape)), "of another shape")
    )
    return (
        f"weights: {best.share:.1%} of {best.backbone} found by the rules of {best.source}, want "
        f"{ENOUGH:.0%} (first {kind}: {name}; {len(best.unexpected)} tensors left over); "
        f"is it a checkpoint of another network than {what}?"
    )


# ----------------------------------------------------------------------------------------------- writing


def complete(found: Match) -> dict[str, Tensor]:
    """All tensors of the backbone; those not in the file as a fresh network of seed 0 has them."""
    tensors = dict(found.matched)
    if found.missing or found.wrong_shape:
        torch.manual_seed(0)
        fresh = build_backbone(found.backbone).state_dict()
        tensors = {name: tensors.get(name, tensor) for name, tensor in fresh.items()}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in tensors.items()
    }


def write_weights(path: Path, found: Match, origin: Path) -> dict[str, str]:
    """Write the safetensors file, by a temporary name; returns its metadata: where the weights are from."""
    metadata = {
        "backbone": found.backbone,
        "source": found.source,
        "file": origin.name,
        "sha256": file_sha256(origin),
    }
    with replacing(path) as temporary:
        save_file(complete(found), temporary, metadata=metadata)
    return metadata


def text(found: Match, out: Path) -> str:
    """The report for people; at most ten names of a kind."""
    lines = [
        f"{found.backbone} from {found.source}: {len(found.matched)} tensors matched ({found.share:.1%})"
    ]
    kinds = {
        "missing, initialised afresh": found.missing,
        "of another shape, initialised afresh": [
            f"{name} {there}, want {here}" for name, (there, here) in found.wrong_shape.items()
        ],
        "unexpected, left out": found.unexpected,
    }
    for kind, names in kinds.items():
        if names:
            lines.append(f"{len(names)} {kind}: {first_names(names, 10, quoted=False)}")
    lines.append(f"use it with --set encoder.backbone={found.backbone} --set encoder.weights={out}")
    return "\n".join(lines)


@click.command(
    cls=Command,
    epilog="Example: leantad convert-weights r2plus1d_34-tsp_on_activitynet.pth --out tsp_r34.safetensors",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--backbone", type=click.Choice(list(BACKBONES)), help="Default: the one that matches best.")
@click.option(
    "--source", type=click.Choice(NAMES), help="Whose names the file has. Default: found by trying."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("weights.safetensors"),
    show_default=True,
    help="Where the weights go.",
)
@force_option
@output_options
def main(
    checkpoint: Path,
    backbone: str | None,
    source: str | None,
    out: Path,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert a pretrained checkpoint for encoder.weights; says what matched and what did not.

    Exit code 1: written, but some of the backbone's tensors were not in the file.
    """
    output = Output(quiet, as_json)
    check_new_file(out, force=force)
    weights = read_tensors(checkpoint)
    found = best_match(weights, backbone=backbone, source=source)
    metadata = write_weights(out, found, checkpoint)
    output.say(text(found, out))
    output.document({**found.report(), "out": out, "sha256": metadata["sha256"]})
    if found.missing or found.wrong_shape:
        sys.exit(1)


if __name__ == "__main__":
    main()
