"""Which settings a run may be resumed with, and which not."""

from __future__ import annotations

import json

from settings_group import groups_of, settings_of
from train.changes import (
    MAY_CHANGE,
    changed_keys,
    forbidden_changes,
    measured_as,
    measured_otherwise,
    other_costs,
)
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


def test_settings_of_a_group_within_a_group_and_those_of_one_side_alone_are_named():
    old, new = {"a": {"b": {"c": 1, "d": 2}}, "e": 3}, {"a": {"b": {"c": 0, "d": 2}, "f": 4}}
    assert changed_keys(old, new) == ["a.b.c", "a.f", "e"]
    assert changed_keys(old, old) == []


def test_weights_are_measured_as_now_and_stay_those_of_their_own_settings():
    before, now = settings(), settings(post__sigma=0.5, data__val_subset="test", data__num_clips=3, seed=9)
    assert measured_otherwise(before, now) == ["data.val_subset", "post.sigma"]
    whole = json.dumps(before)
    measured = measured_as(before, now)
    assert changed_keys(before, measured) == ["data.val_subset", "post.sigma"]
    assert changed_keys(measured, now) == ["seed", "data.num_clips"] and json.dumps(before) == whole
