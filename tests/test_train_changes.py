"""Which settings a run may be resumed with, and which not."""

from __future__ import annotations

import json

from settings_group import groups_of, settings_of
from train.changes import MAY_CHANGE, forbidden_changes, other_costs
from train.settings import RECIPES, Settings, read_settings


def settings(**changes: object) -> dict:
    """The demo's, as plain values; changes: with __ for the dot."""
    overrides = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in changes.items()]
    return read_settings(RECIPES / "demo.yaml", overrides).model_dump(mode="json")


def test_what_may_change_are_settings_that_there_are():
    names = [setting.name for name, group in groups_of(Settings) for setting in settings_of(group, name)]
    assert not [prefix for prefix in MAY_CHANGE if not any(name.startswith(prefix) for name in names)]


def test_what_costs_memory_may_change_and_what_decides_the_weights_may_not():
    less = {"encoder__clips_per_forward": 1, "encoder__slice_mib": 16, "data__prefetch": 3}
    before = settings(encoder__train_batch_norm=False)
    after = settings(encoder__train_batch_norm=False, optimizer__batch_size=1, **less)
    assert forbidden_changes(before, after) == ["optimizer.batch_size"]
    assert set(other_costs(before, after)) == {name.replace("__", ".") for name in less}


def test_batch_norm_that_trains_keeps_the_number_of_clips_of_its_statistics():
    before = settings(encoder__train_batch_norm=True)
    after = settings(encoder__train_batch_norm=True, encoder__clips_per_forward=1, encoder__slice_mib=16)
    assert forbidden_changes(before, after) == ["encoder.clips_per_forward"]
