"""Converts other projects' pretrained checkpoints to a backbone's weights: a safetensors file.

Every tensor is renamed by the rules in tools/weights/names. Whose rules, and which backbone, is found by
trying all of them, unless named.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.backbones import BACKBONES, build_backbone
from pipeline.files import file_sha256, replacing
from pipeline.text import first_names
from tools.weights.files import read_checkpoint
from tools.weights.matching import SOURCE_NAMES, MatchedWeights, best_match
from train.cli import Command, Output, check_new_file, exit_with, force_option, output_options


def all_tensors(matched: MatchedWeights) -> dict[str, Tensor]:
    """All tensors of the backbone; those not in the file as a fresh network of seed 0 has them."""
    tensors = dict(matched.tensors)
    if matched.missing or matched.wrong_shape:
        torch.manual_seed(0)
        fresh = build_backbone(matched.backbone).state_dict()
        tensors = {name: tensors.get(name, tensor) for name, tensor in fresh.items()}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone().contiguous()
        for name, tensor in tensors.items()
    }


def write_weights(path: Path, matched: MatchedWeights, origin: Path) -> dict[str, str]:
    """Write the safetensors file, by a temporary name; returns its metadata: where the weights are from."""
    metadata = {
        "backbone": matched.backbone,
        "source": matched.source,
        "file": origin.name,
        "sha256": file_sha256(origin),
    }
    with replacing(path) as temporary:
        save_file(all_tensors(matched), temporary, metadata=metadata)
    return metadata


def text_of(matched: MatchedWeights, out: Path, remark: str | None = None) -> str:
    """What was taken, what matched and what did not, for people; at most ten names of a kind."""
    count = f"{len(matched.tensors)} tensors matched ({matched.share:.1%})"
    lines = [*([remark] if remark else []), f"{matched.backbone} from {matched.source}: {count}"]
    kinds = {
        "missing, initialised afresh": matched.missing,
        "of another shape, initialised afresh": [
            f"{name} {there}, want {here}" for name, (there, here) in matched.wrong_shape.items()
        ],
        "unexpected, left out": matched.unexpected,
    }
    for kind, names in kinds.items():
        if names:
            lines.append(f"{len(names)} {kind}: {first_names(names, 10, quoted=False)}")
    lines.append(f"use it with --set encoder.backbone={matched.backbone} --set encoder.weights={out}")
    return "\n".join(lines)


@click.command(
    cls=Command,
    epilog="Example: leantad convert-weights r2plus1d_34-tsp_on_activitynet.pth --out tsp_r34.safetensors",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--backbone", type=click.Choice(list(BACKBONES)), help="Default: the one that matches best.")
@click.option(
    "--source", type=click.Choice(SOURCE_NAMES), help="Whose names the file has. Default: found by trying."
)
@click.option(
    "--key", help="Which of the file's dicts. Default: averaged weights, if there, else the others."
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
@click.pass_context
def main(
    ctx: click.Context,
    *,
    checkpoint: Path,
    backbone: str | None,
    source: str | None,
    key: str | None,
    out: Path,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Convert a pretrained checkpoint for encoder.weights; say what matched and what did not.

    Exit code 1: written, but some of the backbone's tensors were not in the file.
    """
    output = Output(quiet, as_json)
    check_new_file(out, force=force)
    read = read_checkpoint(checkpoint, key)
    matched = best_match(read.tensors, backbone=backbone, source=source)
    metadata = write_weights(out, matched, checkpoint)
    output.say(text_of(matched, out, read.remark()))
    output.document({**matched.summary(), "key": read.key, "out": out, "sha256": metadata["sha256"]})
    lacking = [*matched.missing, *matched.wrong_shape]
    names = f"{len(lacking)} of the backbone's tensors, initialised afresh: {first_names(lacking)}"
    exit_with(ctx, [f"{checkpoint}: lacks {names}"] if lacking else [])


if __name__ == "__main__":
    main()
