"""The zip that a model file is: its members are stored, not compressed, so that none is larger than the file.

Equal content gives equal bytes, and nothing is ever unpacked to disk.
"""

from __future__ import annotations

import shutil
import stat
import struct
from collections.abc import Mapping
from io import BufferedReader, FileIO
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pipeline.text import first_names, short

BEGIN = b"PK\x03\x04"  # of a zip
BEGIN_OF_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can state
CHUNK = 1 << 20  # bytes that are copied at once
LONGEST_LIST = 1 << 20  # bytes of the list of members; one of two names has 200
WANTED = "want a run folder, one of its checkpoints, or a file of leantad export"
FAULTS = (BadZipFile, EOFError, NotImplementedError, OSError, OverflowError, UnicodeDecodeError, struct.error)


def write_members(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write a zip of members in this order: bytes, or what is in a file."""
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name, content in members.items():
            if isinstance(content, bytes):
                with archive.open(_member(name, len(content)), "w") as target:
                    target.write(content)
            else:
                member = _member(name, content.stat().st_size)
                with open(content, "rb") as source, archive.open(member, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK)


def _member(name: str, size: int) -> ZipInfo:
    """A member as every machine writes it: a file that all may read, of a fixed time."""
    member = ZipInfo(name, BEGIN_OF_TIME)
    member.create_system, member.file_size = 3, size
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    return member


class _ZipReader(BufferedReader):
    """A file that zipfile reads; `longest` is the number of bytes that it may ask for at once."""

    longest = LONGEST_LIST

    def read(self, size: int | None = -1, /) -> bytes:
        """As that of a file; BadZipFile rather than more than `longest` bytes."""
        data = super().read(self.longest + 1 if size is None or size < 0 else min(size, self.longest + 1))
        if len(data) > self.longest:
            raise BadZipFile("its list of members is too long")
        return data


def read_members(path: Path, longest: Mapping[str, int | None]) -> list[bytes]:
    """The content of the members of a zip that has these and no others, in this order.

    longest: bytes of a member at most; None: as many as the file has. Raises ValueError, one line, for a file
    that is damaged, cut, or not as write_members writes one.
    """
    with _ZipReader(FileIO(path)) as file:
        begin = file.read(len(BEGIN))
        if begin != BEGIN:
            raise ValueError(f"{path}: is no model file, it begins with {begin!r}; {WANTED}")
        try:
            with ZipFile(file) as archive:
                _check_members(archive.infolist(), longest, path)
                file.longest = path.stat().st_size
                return [archive.read(name) for name in longest]
        except FAULTS as error:
            reason = short(ValueError(error), 100)
            raise ValueError(f"{path}: damaged, or not copied whole ({reason}); copy it again") from None


def _check_members(members: list[ZipInfo], longest: Mapping[str, int | None], path: Path) -> None:
    """ValueError unless the members are these, each once, plain, and no larger together than the file."""
    names = [member.orig_filename for member in members]
    if sorted(names) != sorted(longest):
        shown = first_names((short(name, 40) for name in names), quoted=False) or "nothing"
        raise ValueError(f"{path}: is no model file, it holds {shown}; {WANTED}")
    for member in members:
        plain = not (member.flag_bits & 1) and not stat.S_ISLNK(member.external_attr >> 16)
        if member.compress_type != ZIP_STORED or member.compress_size != member.file_size or not plain:
            raise ValueError(f"{path}: {member.filename} in it is compressed, encrypted or a link; {WANTED}")
        limit = longest[member.filename]
        if limit is not None and member.file_size > limit:
            raise ValueError(
                f"{path}: {member.filename} in it has {member.file_size:,} bytes, want at most {limit:,}"
            )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError(f"{path}: damaged, it states more bytes than it has; copy it again")
