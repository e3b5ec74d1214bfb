"""Converts other projects' checkpoints: a backbone's to a safetensors file, a detector's to a checkpoint.

Every tensor is renamed by the rules in tools/weights/names. Whose rules, and which backbone, is found by
trying all of them, unless named.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.backbones import build_backbone
from pipeline.files import file_sha256, replacing
from pipeline.text import first_names
from tools.benchmarks.common import check_backbone
from tools.weights.class_names import read_class_names
from tools.weights.families import FAMILIES, Family, check_known, encoder_of, family_of, named_family
from tools.weights.files import ReadCheckpoint, float32_copies, read_checkpoint
from tools.weights.matching import SOURCE_NAMES, MatchedWeights, best_match
from tools.weights.released import SOURCE, ConvertedDetector, check_recipe, convert_detector, write_detector
from train.cli import (
    PATH,
    Command,
    Output,
    check_new,
    check_new_file,
    exit_with,
    force_option,
    output_options,
)

FAMILY_NAMES = [family.name for family in FAMILIES]


def all_tensors(matched: MatchedWeights) -> dict[str, Tensor]:
    """All tensors of the backbone; those not in the file as a fresh network of seed 0 has them."""
    tensors = dict(matched.tensors)
    if matched.missing or matched.wrong_shape:
        torch.manual_seed(0)
        fresh = build_backbone(matched.backbone).weighted.state_dict()
        tensors = {name: tensors.get(name, tensor) for name, tensor in fresh.items()}
    return float32_copies(tensors)


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


def write_encoder(
    out: Path, matched: MatchedWeights, read: ReadCheckpoint, origin: Path, output: Output
) -> list[str]:
    """Write an encoder's weights and say what they are; returns what they lack, in at most one line."""
    metadata = write_weights(out, matched, origin)
    output.say(text_of(matched, out, read.remark()))
    output.document({**matched.summary(), "key": read.key, "out": out, "sha256": metadata["sha256"]})
    lacking = [*matched.missing, *matched.wrong_shape]
    names = f"{len(lacking)} of the backbone's tensors, initialised afresh: {first_names(lacking)}"
    return [f"{origin}: lacks {names}"] if lacking else []


def detector_family(read: ReadCheckpoint, source: str | None, *, encoder_only: bool) -> Family | None:
    """The family of a file with a whole detector, to be converted as such; None: an encoder is wanted."""
    if encoder_only or source in SOURCE_NAMES:
        return None
    if source is not None:
        return named_family(source, read.tensors)
    found = family_of(read.tensors)
    if found is None:
        check_known(read.tensors)
    return found


def detector_text(found: ConvertedDetector, out: Path, remark: str | None) -> str:
    """What was converted, for people, and what to do with it."""
    encoder, files = f"on features of width {found.settings.data.num_features}", "FEATURES.h5"
    if found.encoder is not None:
        reversible = ", reversible" if found.settings.encoder.reversible else ""
        encoder, files = f"with {found.encoder.backbone}{reversible}", "VIDEO"
    lines = [
        *([remark] if remark else []),
        f"{found.family.what}, {encoder}: all {len(found.state)} tensors matched, none left over",
        f"from recipe {found.recipe}, as tensors do not tell: {found.settings.detector.num_steps} steps, "
        "attention windows, clips, suppression",
        f"use it with leantad predict {files} --checkpoint {out}",
    ]
    return "\n".join(lines)


def check_folder(out: Path, *, force: bool) -> None:
    """ValueError unless a converted detector may go there: what is no such folder is never replaced."""
    if out.suffix == ".safetensors":
        raise ValueError(
            f"--out {out}: the file holds a whole detector, which is written as a folder; give the name of "
            "one, or --encoder-only for the encoder's weights"
        )
    check_new(out, force=force)
    if out.exists() and any(out.iterdir()) and not (out / SOURCE).is_file():
        raise ValueError(f"{out}: holds something else than a converted detector; give another path")


def refuse_options_of_detectors(given: Mapping[str, object]) -> None:
    """ValueError for an option that an encoder alone has no use for. given: options and their values."""
    names = [name for name, value in given.items() if value]
    if names:
        raise ValueError(
            f"{names[0]}: is for whole detectors, and the file holds an encoder alone (or --encoder-only "
            "was given); leave it out"
        )


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  leantad convert-weights r2plus1d_34-tsp_on_activitynet.pth --out tsp_r34.safetensors
  leantad convert-weights re2tal_thumos_swin_tiny.pth --classes category_idx.txt --out re2tal
""",
)
@click.argument("checkpoint", type=PATH)
@click.option(
    "--backbone",
    help="Default: the one of ours that matches best. Another library's is named, as timm:resnet50.",
)
@click.option(
    "--source",
    type=click.Choice([*SOURCE_NAMES, *FAMILY_NAMES]),
    help="Whose names the file has. Default: found by trying.",
)
@click.option(
    "--key", help="Which of the file's dicts. Default: averaged weights, if there, else the others."
)
@click.option(
    "--encoder-only", is_flag=True, help="Of a whole detector, the weights for encoder.weights alone."
)
@click.option(
    "--recipe",
    help="Of a whole detector, where tensors do not tell: steps, windows, suppression. Default: its own.",
)
@click.option(
    "--classes",
    type=PATH,
    help="Of a whole detector: its classes in the scores' order, a name a line, or ActionFormer's JSON.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of a whole detector.")
@click.option(
    "--out",
    type=PATH,
    help="Where it goes. Default: weights.safetensors, a whole detector into the folder detector.",
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
    encoder_only: bool,
    recipe: str | None,
    classes: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    force: bool,
    output: Output,
) -> None:
    """Convert a checkpoint: an encoder for encoder.weights, or a whole detector for predict and eval.

    Exit code 1: written, but some of the backbone's tensors were not in the file.
    """
    if backbone is not None:
        check_backbone(backbone)
    check_recipe(recipe)
    names = read_class_names(classes) if classes else None
    read = read_checkpoint(checkpoint, key)
    family = detector_family(read, source, encoder_only=encoder_only)
    if family is None:
        refuse_options_of_detectors({"--recipe": recipe, "--classes": classes, "--set": overrides})
        out = out or Path("weights.safetensors")
        check_new_file(out, force=force)
        source = None if source in FAMILY_NAMES else source
        matched = best_match(encoder_of(read.tensors), backbone=backbone, source=source)
        exit_with(ctx, write_encoder(out, matched, read, checkpoint, output))
        return
    out = out or Path("detector")
    check_folder(out, force=force)
    found = convert_detector(
        read.tensors, family, backbone=backbone, recipe=recipe, classes=names, overrides=overrides
    )
    document = {**found.summary(), "key": read.key, "file": checkpoint.name}
    write_detector(out, found, {**document, "sha256": file_sha256(checkpoint)})
    output.say(detector_text(found, out, read.remark()))
    output.document({**document, "out": out})


if __name__ == "__main__":
    main()
