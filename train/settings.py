"""All settings of a run: frozen models, one YAML recipe of what differs, `--set key=value` on top."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from pydantic import Field, model_validator

from model.detector.settings import DetectorSettings
from model.settings import EncoderSettings
from pipeline.schemas import parse_yaml, read_yaml
from pipeline.settings import DataSettings
from pipeline.text import short, suggestion
from settings_group import SettingsGroup, groups_of, is_group, settings_of
from train.optimizer import OptimizerSettings
from train.postprocess import PostSettings
from train.trust import LOCATIONS, check_locations, is_own_text, signed

BESIDE = ("checkpoints", "model.safetensors", "log.jsonl")  # what lies beside the settings that a run wrote
MISSING = object()
RECIPES = Path(__file__).resolve().parent / "recipes"
# Former names of settings: an old recipe or checkpoint is refused with the new name.
RENAMED = {
    "data.decode_chunk_frames": "data.decode_chunk_mib",
    "data.piece_frames": "data.decode_chunk_mib",
    "detector.expand": "detector.roi_context",
    "detector.fc": "detector.fc_dim",
    "detector.head": "detector.head_dim",
    "detector.hidden": "detector.neck_dim",
    "detector.end_tolerance": "detector.boundary_tolerance",
    "detector.weights.end_offset": "detector.weights.boundary_offset",
    "detector.weights.ends": "detector.weights.proposal_boundary",
    "encoder.exact": "encoder.fixed_point_states",
    "encoder.piece_clips": "encoder.clips_per_forward",
    "post.pre_top": "post.pre_nms_topk",
    "post.threshold": "post.nms_tiou",
    "post.top_k": "post.max_detections",
}


class RunSettings(SettingsGroup):
    """How long to train, how often to evaluate and save, by which protocol, and on what device."""

    epochs: int = Field(15, ge=1)
    """Passes over the training subset, each rounded up to whole optimizer steps. More train longer; learning
    rates and beta stretch their schedules over all of them."""

    log_every: int = Field(10, ge=1)
    """Optimizer steps between lines of log.jsonl and points in TensorBoard. Fewer show more detail; the
    progress bar is always live."""

    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations of the validation subset; the last epoch is always evaluated. Larger saves
    time: an evaluation can take as long as an epoch."""

    checkpoint_every: int = Field(0, ge=0)
    """Optimizer steps between checkpoints from which a killed run resumes; 0: at the end of each epoch only.
    Fewer lose less work and write more often."""

    protocol: str = "activitynet"
    """tIoU thresholds that mAP is averaged over: activitynet is 0.5:0.05:0.95 (first:step:last), thumos is
    0.3:0.1:0.7; your own look the same, or are a list such as 0.5,0.75."""

    ds_config: str | None = None
    """File with DeepSpeed's own configuration (ZeRO stage, offload, precision), see docs/memory.md; null: the
    repository's ds_config.json."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """What computes: cuda is an NVIDIA GPU, cpu the processor (much slower), auto a GPU where there is
    one."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Numbers that weights and activations are; auto leaves it to run.ds_config: as shipped, bf16 on a GPU
    that has it, else float32. bf16 is faster and takes half the memory, with 8 bits of precision."""

    tf32: bool = True
    """Whether a GPU rounds the factors of float32 products to 10 bits, which is several times faster and
    precise enough to train. false: float32 in full, to compare with a CPU."""

    deterministic: bool = False
    """Whether a GPU computes the same bits each time: two runs with the same settings, and a resumed run, end
    with equal weights. true is slower, and an offloaded optimizer is PyTorch's Adam. false: equal but for
    rounding, see docs/resume.md."""

    lost_after_seconds: float = Field(60, gt=0)
    """Seconds without a sign of life after which one of several processes counts as lost, and the others end.
    Fewer end a run sooner whose process was killed; too few end one on a busy network."""

    report_videos: int = Field(8, ge=0)
    """Videos whose timelines are drawn in report.html. More make the page larger."""


class Settings(SettingsGroup):
    """Everything that decides a run. It is written into the run folder and every checkpoint."""

    seed: int = 0
    """Number that random weights, order, augmentation and sampling start from. The same one repeats a run;
    others show how much is chance."""

    data: DataSettings
    encoder: EncoderSettings = EncoderSettings()
    detector: DetectorSettings = DetectorSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    post: PostSettings = PostSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _features_have_no_encoder(self) -> Settings:
        if self.data.num_features is not None and self.encoder.weights is not None:
            raise ValueError(
                "encoder.weights: with data.num_features there is no encoder, its features are in "
                "data.shards already; set it to null, or data.num_features=null to train on videos"
            )
        return self


def check_keys(values: Mapping[str, Any], model: type[SettingsGroup], *, where: str = "") -> None:
    """ValueError for the first key that is no setting, with the nearest one as a suggestion."""
    for key, value in values.items():
        field = model.model_fields.get(key)
        if field is None:
            if f"{where}{key}" in RENAMED:
                raise ValueError(f"{where}{key}: renamed; write {RENAMED[f'{where}{key}']} instead")
            name = f"{where}{short(key, quoted=False)}"
            raise ValueError(f"{name}: unknown setting; {suggestion(key, model.model_fields)}")
        kind = field.annotation
        if is_group(kind):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{where}{key}: got {short(value)}, want settings below it, such as {where}{key}.NAME"
                )
            check_keys(value, kind, where=f"{where}{key}.")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` (the value is YAML) in the nested dict, in place."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ValueError(f"--set {override}: want key=value, such as --set optimizer.batch_size=2")
    *parents, last = name.strip().split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {override}: {parent} is a value, not a group of settings")
    inner[last] = parse_yaml(text, where=f"--set {name}")


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Checked settings from plain nested values."""
    check_keys(values, Settings)
    return Settings.model_validate(values)


def read_settings(path: Path, overrides: Iterable[str] = ()) -> Settings:
    """The settings in a YAML file with the overrides on top.

    Raises ValueError naming the file and the setting for an unknown key or a value out of range.
    """
    loaded = read_yaml(path)
    if loaded is not None and not isinstance(loaded, dict):
        raise ValueError(f"{path}: got a {type(loaded).__name__}, want groups of settings (key: value)")
    values = cast("dict[str, Any]", loaded or {})
    for override in overrides:
        apply_override(values, override)
    return settings_from(values)


def load_settings(recipe: Path, overrides: Sequence[str] = (), *, trust: bool = False) -> Settings:
    """read_settings of a recipe: a path, or the name of one in train/recipes.

    trust: use all that it names; otherwise as `check_trust` says.
    """
    if not recipe.exists() and (RECIPES / f"{recipe}.yaml").exists():
        recipe = RECIPES / f"{recipe}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise ValueError(f"--recipe {recipe}: no such file; shipped recipes: {known}")
    if not trust:
        check_trust(recipe, overrides)
    return read_settings(recipe, overrides)


def check_trust(
    path: Path, overrides: Sequence[str] = (), *, only: Sequence[str] = LOCATIONS, option: str | None = None
) -> None:
    """ValueError for a location in a file of settings that a stranger may have chosen; see train/trust.py.

    Settings that a run wrote are its owner's, who may be a stranger; a recipe is what a person has chosen.
    overrides: key=value of this command line. only: the settings that will be used. option: what names
    one on this command line, for the message; None: --set.
    """
    text, values = path.read_text(encoding="utf-8", errors="replace"), read_yaml(path)
    if is_own_text(text) or not isinstance(values, dict):
        return
    given = {override.partition("=")[0].strip() for override in overrides}
    locations = {name: _value_at(values, name) for name in only if not given & {name, name.partition(".")[0]}}
    of_a_run = any((path.parent / name).exists() for name in BESIDE) or _states_everything(values)
    check_locations(locations, where=path, of_a_run=of_a_run, option=option)


def _value_at(values: Any, name: str) -> Any:
    """The value of a dotted name in nested values; MISSING if there is none."""
    for part in name.split("."):
        values = values.get(part, MISSING) if isinstance(values, Mapping) else MISSING
    return values


def _states_everything(values: Mapping[str, Any]) -> bool:
    """Whether all settings are there, as in what a run writes, and in no recipe of a person."""
    names = (setting.name for name, group in groups_of(Settings) for setting in settings_of(group, name))
    return all(_value_at(values, name) is not MISSING for name in names)


def dump_settings(settings: Settings) -> str:
    """The full resolved settings as YAML, signed; read_settings reads it back to the same settings."""
    return signed(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
