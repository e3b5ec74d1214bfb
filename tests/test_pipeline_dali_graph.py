"""DALI's graphs, built and serialised without a GPU: operators, arguments, outputs as DALI 2.4 has them."""

from __future__ import annotations

from collections import defaultdict

import pytest
from nvidia.dali import backend

from pipeline.decode import define_pipeline

OPERATOR = "decoders__Video"
# Numbers of fields in dali.proto
OPERATORS, OUTPUTS = 5, 7
NAME, INPUT, OUTPUT, ARGUMENT = 1, 2, 3, 4


def fields_of(message: bytes) -> dict[int, list]:
    """The fields of a Protocol Buffers message by number: integers, and bytes of all that has a length."""
    fields, at = defaultdict(list), 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        assert key & 7 in (0, 2, 5), "dali.proto has integers, floats, and what has a length"
        if key & 7 == 0:
            fields[key >> 3].append(number())
            continue
        size = number() if key & 7 == 2 else 4
        fields[key >> 3].append(message[at : at + size])
        at += size
    return fields


def test_the_fields_of_a_message_are_read_by_number():
    assert fields_of(b"\x08\x96\x01\x12\x02hi\x12\x01!") == {1: [150], 2: [b"hi", b"!"]}


def edges(messages: list[bytes]) -> list[tuple[str, str]]:
    """Name and device of each tensor."""
    return [(found[1][0].decode(), found[2][0].decode()) for found in map(fields_of, messages)]


def arguments(operator: dict[int, list]) -> dict[str, object]:
    """The arguments of an operator that are text or a number, by name, without those DALI adds for itself."""
    found = {}
    for argument in map(fields_of, operator[ARGUMENT]):
        name = argument[1][0].decode()
        values = argument[5] or argument[3] or argument[6]  # text, integer, truth
        if not name.startswith("_") and values:
            found[name] = values[0].decode() if isinstance(values[0], bytes) else values[0]
    return found


@pytest.mark.parametrize(("kind", "device"), [("cpu", "cpu"), ("mixed", "gpu")])
def test_the_graph_decodes_the_frames_asked_for_and_nothing_else(kind, device):
    """device_id needs a GPU and is no part of the operators: the graph is serialised without it."""
    graph = fields_of(define_pipeline(kind, None).serialize())
    operators = [fields_of(operator) for operator in graph[OPERATORS]]
    names = [operator[NAME][0].decode() for operator in operators]
    assert names == ["ExternalSource", "ExternalSource", OPERATOR]
    encoded, numbers, video = operators
    assert edges(encoded[OUTPUT]) == [("encoded", "cpu")] and edges(numbers[OUTPUT]) == [("numbers", "cpu")]
    assert edges(video[INPUT]) == [("encoded", "cpu"), ("numbers", "cpu")]
    inputs = [(tensor[3] == [1], tensor[4]) for tensor in map(fields_of, video[INPUT])]
    assert inputs == [(False, []), (True, [b"frames"])], "the numbers are the argument `frames`"
    ((name, where),) = edges(video[OUTPUT])
    assert where == device and edges(graph[OUTPUTS]) == [(name, device)]
    found = arguments(video)
    assert found["device"] == kind
    assert found["pad_mode"] == "none", "else a frame past the end is a black picture"
    assert set(found) <= {"device", "pad_mode", "preserve_name"}, "nothing of the range that frames replaces"


def test_the_operator_is_that_of_the_documentation():
    """https://docs.nvidia.com/deeplearning/dali/user-guide/docs/operations/nvidia.dali.fn.decoders.video.html"""
    assert OPERATOR in backend.RegisteredMixedOps() and OPERATOR in backend.RegisteredCPUOps()
    schema = backend.GetSchema(OPERATOR)
    assert schema.MinNumInput() == schema.MaxNumInput() == 1
    assert schema.IsTensorArgument("frames") and schema.IsArgumentOptional("pad_mode")
    assert "``'none'``" in schema.GetArgumentDox("pad_mode")


@pytest.mark.gpu
def test_the_graph_of_a_gpu_runs_with_its_number():
    pipeline = define_pipeline("mixed", 0)
    pipeline.build()
    assert fields_of(pipeline.serialize())[OPERATORS]
