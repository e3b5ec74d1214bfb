"""`leantad settings [NAME]`: what every setting means, with its type, range and default."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from pipeline.text import suggestion
from settings_group import Setting, groups_of, settings_of, unwrapped
from train.cli import Command, Output, output_options

HELP = """Explain the settings of a run: type, range, default and meaning of each.

NAME is a setting (encoder.clip_ratio), a group (encoder) or a part of names (ratio); without it, all are
shown. Settings are written into a recipe, or behind --set: train --recipe mine.yaml --set seed=1.
"""
EXAMPLES = """
\b
Examples:
  leantad settings encoder.clip_ratio
  leantad settings ratio
  leantad settings detector --json
"""
PAGE = """# All settings

A recipe states the settings that differ from their defaults, group by group; `--set data.num_clips=64` on the
command line wins over the recipe. How to choose the important ones is in
[choose-settings.md](choose-settings.md). This page is what `leantad settings --markdown` prints. The same at
the terminal, for all settings, for a group, for whatever has a word in its name:

```sh
leantad settings
leantad settings encoder
leantad settings ratio
```
"""
WIDTH, NAME_WIDTH = 80, 28  # columns of a terminal; those that the names may take
PAGE_WIDTH = 110


@dataclass(frozen=True)
class Group:
    """A group of settings that is shown, or the part of it that is."""

    name: str  # dotted; empty for the settings outside of groups
    meaning: str
    settings: tuple[Setting, ...]


def all_groups() -> list[Group]:
    """Everything there is, in the order of a recipe."""
    from train.settings import Settings  # imports torch, which --help does without

    return [
        Group(name, unwrapped(group.__doc__), tuple(settings_of(group, name)))
        for name, group in groups_of(Settings)
    ]


def matching(name: str, groups: Sequence[Group]) -> list[Group]:
    """The setting or the group of this name, or else what has it in its name; ValueError if nothing has.

    Of a group that is not shown whole, the meaning is left out.
    """
    every = {setting.name for group in groups for setting in group.settings}
    if name in every:
        wanted = {name}
    elif any(group.name == name for group in groups):
        wanted = {each for each in every if each.startswith(f"{name}.")}
    else:
        wanted = {each for each in every if name.lower() in each}
    if not wanted:
        raise ValueError(f"{name}: {advice(name, groups)}")
    found = []
    for group in groups:
        part = tuple(setting for setting in group.settings if setting.name in wanted)
        if part:
            found.append(group if part == group.settings else Group(group.name, "", part))
    return found


def advice(name: str, groups: Sequence[Group]) -> str:
    """What was probably meant by a name that fits nothing."""
    from train.settings import RENAMED

    for old, new in RENAMED.items():
        if name in (old, old.rpartition(".")[2]):
            return f"renamed; see leantad settings {new}"
    dotted = [setting.name for group in groups for setting in group.settings]
    parts = dict.fromkeys(part for each in dotted for part in each.split("."))
    list_of_groups = f"groups: {', '.join(group.name for group in groups if group.name)}"
    return f"no setting has this in its name; {suggestion(name, [*dotted, *parts], otherwise=list_of_groups)}"


def values_of(setting: Setting) -> str:
    """Type, range and default: "number, above 0, at most 1; default 0.3"."""
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    end = "required" if setting.required else f"default {default}"
    return f"{', '.join(filter(None, (setting.type, setting.allowed)))}; {end}"


def text_of(groups: Sequence[Group]) -> str:
    """For a terminal, in two columns: the names; values and meaning, wrapped."""
    names = [setting.name for group in groups for setting in group.settings]
    width = min(max(map(len, names)), NAME_WIDTH) + 2
    blocks = []
    for group in groups:
        if group.name and group.meaning:
            blocks.append(textwrap.fill(f"{group.name}: {group.meaning}", WIDTH))
        blocks += [entry(setting, width) for setting in group.settings]
    return "\n\n".join(blocks)


def entry(setting: Setting, width: int) -> str:
    """A setting whose text begins at column `width`, below its name if that is too long."""
    paragraphs = (values_of(setting), setting.meaning)
    text = "\n".join(textwrap.fill(each, WIDTH - width) for each in paragraphs)
    block = textwrap.indent(text, " " * width)
    if len(setting.name) + 2 > width:
        return f"{setting.name}\n{block}"
    return f"{setting.name:{width}}{block[width:]}"


def page_of(groups: Sequence[Group]) -> str:
    """docs/settings.md: a heading and a list for each group."""
    return PAGE + "\n".join(section(group) for group in groups)


def section(group: Group) -> str:
    """A group's part of the page."""
    items = [
        textwrap.fill(
            f"- `{setting.name}` ({values_of(setting)}): {linked(setting.meaning)}",
            PAGE_WIDTH,
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
        for setting in group.settings
    ]
    return "\n".join([f"\n## {group.name or 'The whole run'}\n", f"{group.meaning}\n", *items])


def linked(text: str) -> str:
    """The text with names of settings and files as code, and pages of docs/ as links from within docs/."""
    text = re.sub(r"(?<![\w/-])[a-z_]+(?:\.[a-z_][a-z_0-9]*)+", r"`\g<0>`", text)
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


@click.command(cls=Command, help=HELP, epilog=EXAMPLES)
@click.argument("name", required=False)
@click.option("--markdown", is_flag=True, help="Print docs/settings.md, the page of all settings.")
@output_options
def main(name: str | None, markdown: bool, output: Output) -> None:
    if markdown and (name or output.as_json):
        raise ValueError("--markdown: prints the page of all settings; leave out NAME and --json")
    groups = all_groups()
    found = groups if name is None else matching(name, groups)
    if output.as_json:
        output.document({"settings": [asdict(setting) for group in found for setting in group.settings]})
    else:
        output.say(page_of(groups) if markdown else text_of(found))


if __name__ == "__main__":
    main()
