"""The runs of a study: every combination of the varied settings, each with several seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pipeline.schemas import parse_yaml
from pipeline.text import counted
from train.settings import Settings, load_settings

MAX_RUNS = 10_000  # more is a slip of the keyboard
LONGEST_NAME = 100  # characters of a run's folder


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study. values: the varied settings, by dotted name; overrides: all that goes to --set."""

    name: str
    values: Mapping[str, Any]
    seed: int
    overrides: tuple[str, ...]
    settings: Settings

    @property
    def variant(self) -> str:
        """The varied settings as text, the same for all seeds."""
        return variant_name(self.values)


def variant_name(values: Mapping[str, Any]) -> str:
    """ "clip_ratio=0.3 frozen=true": the last part of each name, as values are written in a recipe."""
    parts = (f"{name.rpartition('.')[2]}={value_text(value)}" for name, value in values.items())
    return " ".join(parts) or "as in the recipe"


def value_text(value: Any) -> str:
    """A value as YAML reads it; text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def parse_vary(options: Sequence[str]) -> dict[str, list[Any]]:
    """ "encoder.clip_ratio=0.1,0.3" -> {"encoder.clip_ratio": [0.1, 0.3]}; ValueError for anything else."""
    varied: dict[str, list[Any]] = {}
    for option in options:
        name, separator, text = option.partition("=")
        name = name.strip()
        if not separator or not name or not text.strip():
            raise ValueError(
                f"--vary {option}: want key=value,value, such as --vary encoder.clip_ratio=0.1,0.3"
            )
        _refuse_seed("--vary", option)
        if name in varied:
            raise ValueError(
                f"--vary {name}: given twice; want all of its values in one, with commas between"
            )
        values = parse_yaml(f"[{text}]", where=f"--vary {name}")
        if len({value_text(value) for value in values}) < len(values):
            raise ValueError(f"--vary {option}: a value is there twice")
        varied[name] = values
    return varied


def _refuse_seed(flag: str, option: str) -> None:
    """ValueError for an option that states the seed, which the study sets itself."""
    if option.partition("=")[0].strip() == "seed":
        raise ValueError(f"{flag} seed: want --seeds N, which runs every combination with seeds 0 to N - 1")


def plan_runs(
    recipe: Path, overrides: Sequence[str], varied: Mapping[str, Sequence[Any]], *, seeds: int, trust: bool
) -> list[PlannedRun]:
    """All runs: the first seed of every combination, then the second, and so on, settings checked.

    So a study that is stopped early has something to show of every combination. ValueError names the first
    combination whose settings are wrong, or a seed among the overrides.
    """
    for override in overrides:
        _refuse_seed("--set", override)
    combinations = [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]
    if len(combinations) * seeds > MAX_RUNS:
        raise ValueError(f"--vary: got {counted(len(combinations) * seeds, 'run')}, want at most {MAX_RUNS}")
    return [
        _planned(recipe, overrides, values, seed, trust=trust)
        for seed in range(seeds)
        for values in combinations
    ]


def _planned(
    recipe: Path, overrides: Sequence[str], values: Mapping[str, Any], seed: int, *, trust: bool
) -> PlannedRun:
    own = [f"{name}={json.dumps(value)}" for name, value in values.items()]  # JSON is YAML, and quotes text
    everything = (*overrides, *own, f"seed={seed}")
    settings = load_settings(recipe, everything, trust=trust)
    return PlannedRun(_folder_name(values, seed), values, seed, everything, settings)


def _folder_name(values: Mapping[str, Any], seed: int) -> str:
    """The name of a run's folder: readable, the same each time, another for other values."""
    text = variant_name(values).replace(" ", "-") if values else "recipe"
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "_", text)
    last_parts = {dotted.rpartition(".")[2] for dotted in values}
    if name == text and len(name) <= LONGEST_NAME and len(last_parts) == len(values):
        return f"{name}-seed{seed}"
    exact = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    return f"{name[:LONGEST_NAME]}-{exact}-seed{seed}"
