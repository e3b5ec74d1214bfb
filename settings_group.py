"""The base class of all groups of settings: frozen, strict, each setting explained below its default."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Settings that belong together; what stands below a field as a string is its description.

    An unknown key is an error, and nothing can be changed afterwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
