"""What a checkpoint, a recipe or a result file of somebody else may make a command read: nothing but itself.

Settings name locations: data behind a shell command (`pipe:`) or a URL, files anywhere on this machine.
Result files name videos. A person's own are used as they stand; those of others only where this command line
names them, too, or says --trust. To tell the two apart, the files that we write carry a signature
(HMAC-SHA256) by a key that lies in the home folder of whoever wrote them, as Jupyter signs notebooks: it
stays valid when a run is moved, renamed or read on another machine with the same home; nobody else makes one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.remote import SCHEME
from pipeline.text import short

# The settings that name locations. Below the working folder those of others are harmless, but for DeepSpeed's
# own file, which can name further ones to write to, and services to report to.
LOCATIONS = ("data.shards", "encoder.backbone", "encoder.weights", "run.ds_config")
ALWAYS_NAMED = ("run.ds_config",)
SIGNATURE = re.compile(r"# signature: ([0-9a-f]{64})\n\Z")
KEY_BYTES = 32


# ------------------------------------------------------------------------------------------- signatures


def key_file() -> Path:
    """The file with the key of this account."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "leantad" / "key"


def _own_key(*, create: bool) -> bytes | None:
    """The key of this account; None where there is none, or none can be kept."""
    path = key_file()
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        if create and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".key.{os.getpid()}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(KEY_BYTES))
                with suppress(FileExistsError):  # another process was faster
                    os.link(temporary, path)
            finally:
                temporary.unlink()
        key = path.read_bytes()
        return key if len(key) == KEY_BYTES else None
    return None


def signature_of(text: str) -> str | None:
    """The signature of this account under a text; None where no key can be kept."""
    key = _own_key(create=True)
    return None if key is None else _signature(key, text)


def _signature(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def is_own(text: str, signature: object) -> bool:
    """Whether a signature is that of this account under the text."""
    key = _own_key(create=False)
    return key is not None and hmac.compare_digest(_signature(key, text).encode(), str(signature).encode())


def signed(text: str) -> str:
    """A YAML text with the signature as its last line, a comment."""
    signature = signature_of(text)
    return text if signature is None else f"{text}# signature: {signature}\n"


def unsigned(text: str) -> str:
    """The text without its signature."""
    return SIGNATURE.sub("", text)


def is_own_text(text: str) -> bool:
    """Whether `signed` wrote this text, on this account, and nobody changed it."""
    found = SIGNATURE.search(text)
    return found is not None and is_own(text[: found.start()], found[1])


# ------------------------------------------------------------------------------------------------ locations


def leads_elsewhere(location: str, folder: Path) -> bool:
    """Whether a location is a command, a URL, or a path that is not below `folder`."""
    if SCHEME.match(location) or "\0" in location:
        return True
    parts = re.split(r"[/{},]", location)  # a brace range stands for several paths
    if ".." in parts or location.startswith(("/", "~")) or re.search(r"[{,]/", location):
        return True
    return not (folder / location).resolve().is_relative_to(folder.resolve())


def check_locations(
    locations: Mapping[str, object], *, where: Path, of_a_run: bool, option: str | None
) -> None:
    """ValueError for a location that settings of unknown origin name, and that may not be used.

    locations: by setting, see LOCATIONS. where: the file of the settings. of_a_run: whether they came with a
    run or checkpoint; of a recipe, which a person has chosen, only a program is refused. option: what names a
    location instead; None: --set.
    """
    from model.backbones.libraries import named_folder  # not for reading detections: it imports torch

    for name, location in locations.items():
        instead = option or f"--set {name}=..."
        if name == "encoder.backbone" and isinstance(location, str):
            location = named_folder(location)  # of hf:FOLDER; all other names are no location
        if not isinstance(location, str):
            continue
        if location.lower().startswith("pipe:"):
            raise ValueError(
                f"{where}: {name} is a command, {short(location, 100)}, and nobody but you may run one here; "
                f"name it with {instead}, or --trust all that this file names"
            )
        if of_a_run and (name in ALWAYS_NAMED or leads_elsewhere(location, Path())):
            raise ValueError(
                f"{where}: {name} leads to {short(location, 100)}, and you did not write this file here; "
                f"name yours with {instead}, or --trust all that it names"
            )


def foreign_files(files: Iterable[str], folder: Path) -> list[str]:
    """Of the files that somebody else's result file in `folder` names, those that do not lie below it."""
    root = folder.resolve()
    return [file for file in files if "\0" in file or not Path(file).resolve().is_relative_to(root)]
