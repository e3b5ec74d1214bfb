"""Damages files as disks, other programs and strangers do; each mutation is a pure function of its Random.

JSON and YAML get values of other types, other keys, deep nesting and numbers that no float holds; HDF5 gets
other attributes, shapes and links; tables get other cells; any file gets its bytes cut, flipped and moved.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import yaml

Mutation = Callable[[bytes, Random], bytes]

DEEP = "\ue000"  # stands for nesting, which json.dumps could not write
HUGE = "\ue001"  # stands for a number that is no float
TWICE = "\ue002"  # at the end of a key: the same key once more
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-300, 1e300, -1e300, 1e9, 1e20, 2**31, 2**63, 10**30),
    *(math.inf, -math.inf, math.nan, HUGE, HUGE),
    *(
        "",
        " ",
        "x",
        "1.5",
        "nan",
        "1_0",
        "\0",
        "a\nb",
        "\u2028",
        "\ud800",
        "../x",
        "/etc/passwd",
        "~",
        "%s{}",
    ),
    *("x" * 5000, "{" * 600, "pipe:touch pwned", "file:///etc/passwd", "http://127.0.0.1:9/x", "a.tar"),
    *([], [[]], [None], [1, 2], ["a", "b"], [0.5, 0.5], [[1, 2], [3, 4]], list(range(3000))),
    *({}, {"a": 1}, {"": {}}, {"segment": [1, 2], "label": "x", "score": 1}, {str(i): i for i in range(500)}),
    *(DEEP, DEEP, DEEP),
)


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a document are, as keys and indices from the top; the document itself is ()."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in inner for found in places_in(item, (*place, key)))]


def _at(document: Any, place: tuple[Any, ...]) -> Any:
    for part in place:
        document = document[part]
    return document


def mutate_value(document: Any, random: Random) -> Any:
    """Change one place of a document of plain values: its value, its key, or whether it is there at all."""
    # Shallow places are few and decide much, so half of the time one depth is drawn first.
    places = places_in(document)
    if random.random() < 0.5:
        depth = random.choice(sorted({len(place) for place in places}))
        places = [place for place in places if len(place) == depth]
    place = random.choice(places)
    if not place:
        return random.choice((random.choice(ODD), [document], {"results": document}, {}))
    parent, last = _at(document, place[:-1]), place[-1]
    change = random.choice(("odd", "odd", "odd", "other", "delete", "key", "insert", "wrap", "twice"))
    if change == "odd":
        parent[last] = random.choice(ODD)
    elif change == "other":
        parent[last] = json.loads(json.dumps(_at(document, random.choice(places_in(document)))))
    elif change == "wrap":
        parent[last] = random.choice(([parent[last]], {"value": parent[last]}, str(parent[last])))
    elif change == "delete":
        del parent[last]
    elif isinstance(parent, list):
        parent.insert(random.randrange(len(parent) + 1), random.choice((parent[last], random.choice(ODD))))
    elif change == "key":
        names = (
            f"{last}s",
            "",
            "x" * 3000,
            "../x",
            "a\0b",
            "\ud800",
            last + "\n",
            f"v_{last}.mp4",
            "__proto__",
        )
        parent[random.choice(names)] = parent.pop(last)
    elif change == "twice":
        parent[f"{last}{TWICE}"] = random.choice((parent[last], random.choice(ODD)))
    else:
        parent[random.choice(("extra", "results", "key", "where", "self"))] = random.choice(ODD)
    return document


def _expanded(text: str, random: Random) -> bytes:
    """The text with what json.dumps could not write."""
    while f'"{DEEP}"' in text:
        depth = random.choice((40, 150, 600, 990, 3000, 100_000))
        begin, end = random.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
        text = text.replace(f'"{DEEP}"', f"{begin * depth}1{end * depth}", 1)
    while f'"{HUGE}"' in text:
        number = random.choice(("1e999", "-1e999", "1" + "0" * 400, "1" * 5000, "1e-999", "0" * 3 + "1"))
        text = text.replace(f'"{HUGE}"', number, 1)
    return text.replace(TWICE, "").encode("utf-8", "surrogatepass")


def mutate_json(data: bytes, random: Random) -> bytes:
    """One to three changes of the values in a JSON document."""
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        document = mutate_value(document, random) if isinstance(document, (dict, list)) else document
    surrogates = random.random() < 0.5  # as escapes, or as bytes that are no UTF-8
    return _expanded(_dumped(document, surrogates), random)


def _dumped(document: Any, escaped: bool) -> str:
    text = json.dumps(document, ensure_ascii=escaped)
    for sign in (DEEP, HUGE, TWICE):
        text = text.replace(json.dumps(sign)[1:-1], sign)
    return text


def mutate_lines(data: bytes, random: Random) -> bytes:
    """One to four changed lines of a file of JSON documents, a line each."""
    lines = data.splitlines()
    for _ in range(random.randint(1, 4)):
        number = random.randrange(len(lines))
        try:
            lines[number] = mutate_json(lines[number], random).replace(b"\n", b" ")
        except ValueError:  # changed to something else already
            lines[number] = mutate_bytes(lines[number], random)
    return b"\n".join(lines) + random.choice((b"\n", b""))


YAML_TEXTS = (
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "a: &a [*a]\n",
    "<<: 1\n",
    "seed: !!python/object/apply:os.system [ls]\n",
    "seed: 2001-99-99\n",
    "seed: 2001-01-01\n",
    "seed: !!binary 'x'\n",
    "seed: !!int 'x'\n",
    "seed: !!set {a}\n",
    "x: " + "[" * 3000 + "]" * 3000 + "\n",
    "x: " + "[" * 100 + "]" * 100 + "\n",
    "- a\n- b\n",
    "\tx: 1\n",
    "%YAML 9.9\n---\n",
    # references to references: eight letters, and a hundred million values
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "---\na: 1\n---\nb: 2\n",
    "'" + "x" * 4000 + "': 1\n",
    "seed: " + "9" * 5000 + "\n",
    "seed: 0x" + "f" * 5000 + "\n",
    "seed: 1:2:3\n",
)


def mutate_yaml(data: bytes, random: Random) -> bytes:
    """Changed values of a YAML document, or YAML that is odd in itself before, behind or inside it."""
    if random.random() < 0.6:
        return mutate_json(json.dumps(yaml.safe_load(data)).encode(), random)
    text = random.choice(YAML_TEXTS).encode()
    lines = data.splitlines(keepends=True)
    number = random.randrange(len(lines) + 1)
    group = next((i for i in range(number, len(lines)) if not lines[i].startswith(b" ")), len(lines))
    if random.random() < 0.3 and b": " in text:  # as the value of a setting
        key = lines[number % len(lines)].split(b":")[0]
        value = text.partition(b": ")[2]
        return b"".join(
            [*lines[: number % len(lines)], key + b": " + value, *lines[number % len(lines) + 1 :]]
        )
    return random.choice((text + data, data + text, text, b"".join([*lines[:group], text, *lines[group:]])))


CELLS = (
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "-1",
        "1_0",
        "0x1",
        "1,5",
        '"',
        '""',
        "a\0b",
        "a\nb",
        "\ud800",
        "x" * 5000,
    ),
    *("../x", "=1+1", "9" * 5000, "\ufeff", "\u0664", ";", "\t", "1e308", "-1e308", "'", "label", "start"),
)


def mutate_table(data: bytes, random: Random) -> bytes:
    """Changed cells, rows and separators of a file of lines; cells end at commas or spaces."""
    separator = b"," if b"," in data else b" "
    rows = [line.split(separator) for line in data.split(b"\n")]
    for _ in range(random.choice((1, 1, 2, 5))):
        row = random.choice(rows)
        cell = random.choice(CELLS).encode("utf-8", "surrogatepass")
        change = random.choice(("cell", "cell", "number", "insert", "delete", "row", "twice", "separator"))
        at = random.randrange(len(row)) if row else 0
        if change in ("cell", "number") and row:
            numbers = ("-1", "0", "1", str(2**31), str(2**63), str(10**30), "1" * 4400, "0.5")
            row[at] = cell if change == "cell" else random.choice(numbers).encode()
        elif change == "insert":
            row.insert(at, cell)
        elif change == "delete" and row:
            del row[at]
        elif change == "row":
            rows.insert(random.randrange(len(rows) + 1), [cell] * random.choice((1, len(row), 3000)))
        elif change == "twice":
            rows.insert(random.randrange(len(rows) + 1), list(row))
        elif change == "separator":
            separator = random.choice((b";", b"\t", b"|", b", ", b"  ", b","))
    return random.choice((b"\n", b"\n", b"\r\n", b"\r")).join(separator.join(row) for row in rows)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Cut, flipped, moved, repeated, overwritten or foreign bytes; sometimes nothing is left."""
    if not data:
        return random.randbytes(random.choice((1, 64, 5000)))
    size = len(data)
    begin = random.choice((random.randrange(size), random.randrange(min(size, 64))))
    length = min(size - begin, random.choice((1, 1, 2, 4, 8, 64, 4096, size)))
    head, part, tail = data[:begin], data[begin : begin + length], data[begin + length :]
    changes = (
        lambda: head,  # cut
        lambda: head + bytes(byte ^ (1 << random.randrange(8)) for byte in part) + tail,
        lambda: head + random.randbytes(length) + tail,
        lambda: head + random.choice((b"\0", b"\xff", b"9", b"[", b'"', b" ")) * length + tail,
        lambda: head + tail,
        lambda: head + part + part + tail,
        lambda: tail + part + head,
        lambda: head + random.randbytes(random.choice((1, 8, 300))) + part + tail,
        lambda: b"".join(bytes([b ^ 1]) if random.random() < 0.002 else bytes([b]) for b in data[:200_000]),
        lambda: random.choice(
            (b"", b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16"), data + data)
        ),
        lambda: b"<!doctype html>\n<title>502 Bad Gateway</title>\n" * random.choice((1, 200)),
    )
    return random.choice(changes)()


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """A changed header, its length, or another length with the same header."""
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = data[8 : 8 + size], data[8 + size :]
    if random.random() < 0.2:
        return (
            struct.pack("<Q", random.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))) + data[8:]
        )
    changed = mutate_json(header, random)
    return struct.pack("<Q", len(changed)) + changed + rest


def mutate_zip(data: bytes, random: Random) -> bytes:
    """A changed member of a zip, as numpy and torch write them, or one more, one less, another name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = random.randrange(len(members))
    name, content = members[at]
    change = random.choice(("bytes", "bytes", "delete", "name", "twice", "shape"))
    if change == "delete":
        del members[at]
    elif change == "name":
        members[at] = random.choice(("../x", "/x", "x" * 3000, name + "x", "a/data.pkl")), content
    elif change == "twice":
        members.append(members[at])
    elif change == "shape":
        shapes = (b"(-1,)", b"(10**9,)", b"(1000000000000,)", b"'x'", b"((),)", b"(1e9,)", b"(True,)")
        members[at] = name, content.replace(b"(3,)", random.choice(shapes)).replace(b"<f4", b"|O8")
    else:
        members[at] = name, mutate_bytes(content, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


ATTRIBUTES: tuple[Any, ...] = (
    *(
        "",
        "x",
        "{",
        "[]",
        "null",
        "5",
        '{"post": []}',
        '{"post": 5}',
        '{"videos": 3}',
        "[" * 5000,
        b"\xff\xfe",
        "x" * 4000,
    ),
    *(
        0,
        -1,
        2**62,
        1e300,
        np.nan,
        np.inf,
        -np.inf,
        True,
        np.int8(3),
        np.float32(0.5),
        [1, 2],
        [[1.0]],
        ["a", "b"],
    ),
    *(
        '{"videos": {"a": 1}}',
        '{"rejected": [1]}',
        '{"subset": 5}',
        '{"post": {"sigma": "x"}}',
        '{"post": {"a": 1}}',
    ),
    *(np.zeros((0,)), h5py.Empty("f"), h5py.Empty("S10"), np.complex64(1j), np.void(b"x" * 8)),
)
ARRAYS: tuple[Any, ...] = (
    *(
        np.zeros(0),
        np.zeros((3, 2)),
        np.zeros((1, 2, 3)),
        np.float64(1),
        np.array([b"a", b"b"]),
        h5py.Empty("f"),
    ),
    *(np.full((4, 2), np.nan), np.full((4,), np.inf), np.zeros((4, 2), complex), np.zeros((4, 2), bool)),
    *(np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), np.void(b"x"), np.array([b"\xff\xfe"])),
)


def mutate_hdf5(data: bytes, random: Random) -> bytes:
    """One to three changes of attributes, arrays, groups or links of an HDF5 file."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        for _ in range(random.choice((1, 1, 2, 3))):
            names: list[str] = ["/"]
            file.visit(lambda name, names=names: names.append(name))
            name = random.choice(names)
            try:
                node = file[name]
                if node.attrs and random.random() < 0.5:
                    _change_attribute(node, random)
                elif name != "/":
                    _change_member(file, name, random)
            except (KeyError, RuntimeError, ValueError, TypeError, OSError):
                continue  # an earlier change let a link lead nowhere, or into a circle
    return buffer.getvalue()


def _change_attribute(node: Any, random: Random) -> None:
    name = random.choice(sorted(node.attrs))
    del node.attrs[name]
    if random.random() < 0.8:
        node.attrs[name] = random.choice(ATTRIBUTES)


def _change_member(file: h5py.File, name: str, random: Random) -> None:
    node = file[name]
    small = isinstance(node, h5py.Dataset) and (node.size or 0) < 1 << 20  # not one that grew before
    old = node[()] if small else None
    del file[name]
    change = random.choice(("delete", "array", "array", "values", "group", "soft", "self", "outside", "big"))
    if change == "array":
        file[name] = random.choice(ARRAYS)
    elif change == "values" and old is not None and old.dtype.kind == "f" and old.size:
        old.flat[random.randrange(old.size)] = random.choice((np.nan, np.inf, -np.inf, 1e30, -5.0, 0.0))
        file[name] = old
    elif change == "group":
        file.create_group(name)
    elif change == "soft":
        file[name] = h5py.SoftLink(random.choice(("/nowhere", "/" + name, "/windows", "/classes", ".")))
    elif change == "self":
        others = [other for other in sorted(file) if isinstance(file.get(other, getlink=True), h5py.HardLink)]
        file[name] = file[random.choice(["/", *others])]
    elif change == "outside":
        file[name] = h5py.ExternalLink("/etc/passwd", "/x")
    elif change == "big":
        file.create_dataset(
            name, shape=random.choice(((2**40,), (2**36, 2), (2, 2**36))), chunks=True, dtype="f4"
        )


def mutations_of(path: Path) -> tuple[Mutation, ...]:
    """The mutations that fit a file of this name."""
    by_suffix: dict[str, tuple[Mutation, ...]] = {
        ".json": (mutate_json, mutate_json, mutate_json, mutate_bytes),
        ".jsonl": (mutate_lines, mutate_lines, mutate_bytes),
        ".yaml": (mutate_yaml, mutate_yaml, mutate_bytes),
        ".csv": (mutate_table, mutate_table, mutate_bytes),
        ".idx": (mutate_table, mutate_bytes),
        ".safetensors": (mutate_safetensors, mutate_safetensors, mutate_bytes),
        ".npz": (mutate_zip, mutate_bytes),
        ".pt": (mutate_zip, mutate_bytes),
        ".pth": (mutate_zip, mutate_bytes),
        ".h5": (mutate_hdf5, mutate_hdf5, mutate_bytes),
    }
    return by_suffix.get(path.suffix, (mutate_bytes,))
