"""The pretrained weights that settings are proposed for: found beside the data, and I3D's."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path("i3d.safetensors")  # where the recipes look for them, in the folder that one works in


def find_weights(given: Path | None) -> Path | None:
    """The file with I3D's weights: the given one, else WEIGHTS if it is there; None without either.

    ValueError if it is not what convert-weights writes of I3D: training would refuse it, too, but later.
    """
    path = given or (WEIGHTS if WEIGHTS.is_file() else None)
    if path is not None:
        check_weights(path)
    return path


def check_weights(path: Path) -> None:
    """ValueError naming the file unless it holds I3D's tensors, all of them, in their shapes."""
    import torch  # takes seconds

    from model.backbones import build_backbone
    from train.checkpoint import read_safetensors

    if not path.is_file():
        raise ValueError(f"--weights {path}: no such file; convert-weights writes one")
    found = {name: tuple(tensor.shape) for name, tensor in read_safetensors(path).items()}
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in build_backbone("i3d").state_dict().items()}
    if found != wanted:
        raise ValueError(
            f"{path}: does not hold the weights of i3d as convert-weights writes them; settings are proposed "
            "for those alone (others: docs/choose-settings.md, Settings with pretrained weights)"
        )
