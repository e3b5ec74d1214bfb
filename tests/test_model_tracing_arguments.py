"""The arguments of a block: which is the state, what else is given, and what is the same call again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from model.tracing.arguments import (
    STATE,
    Arguments,
    RefusedError,
    call_signature,
    signature_of,
    split_state,
    tensors_in,
)
from model.tracing.example import guess_example


@dataclass
class Sizes:
    """A container of the kind that libraries pass along."""

    table: Tensor
    scale: float = 1.0


class Block(nn.Module):
    def forward(self, hidden: Tensor, mask: Tensor | None = None, *more: object, **options: object) -> Tensor:
        return hidden


class Anything(nn.Module):
    def forward(self, *inputs: object, **options: object) -> object:
        return inputs[0]


class Nothing(nn.Module):
    def forward(self) -> None:
        return None


X = torch.zeros(2, 3)


def test_tensors_are_found_in_every_container():
    a, b, c = (torch.full((1,), float(number)) for number in range(3))
    found = list(tensors_in([a, {"b": (b, None)}, Sizes(c), Sizes, "text", 3]))
    assert [int(tensor) for tensor in found] == [0, 1, 2]


def test_the_state_is_the_first_argument_however_it_is_passed():
    assert split_state("b", Block(), (X, 1), {"flag": True}) == (X, Arguments((1,), {"flag": True}))
    state, others = split_state("b", Block(), (), {"mask": None, "hidden": X})
    assert state is X and others == Arguments((), {"mask": None})
    _, shortcut = split_state("b", Block(), (X, X), {})
    assert shortcut.args == (STATE,) and shortcut.call(lambda *given: given, "before", "state") == (
        "before",
        "state",
        "state",
    )
    for block, given in ((Block(), {"mask": X}), (Nothing(), {})):
        with pytest.raises(RefusedError, match="b: it is called without its state"):
            split_state("b", block, (), given)


def test_arguments_have_the_names_of_forwards_parameters_and_defaults_are_left_out():
    given = Arguments((X, 7, 8), {"flag": True, "off": False}).given(Block())
    assert list(given) == ["mask", "more[0]", "more[1]", "flag"] and given["more[1]"] == 8
    assert list(Arguments((5, 6), {"rate": 0.5}).given(Anything())) == ["inputs[1]", "inputs[2]", "rate"]
    assert Arguments((None,)).given(Block()) == {} == Arguments().given(Block())


def test_a_gradient_in_any_container_is_refused_by_the_arguments_name():
    learned = torch.zeros(1, requires_grad=True)
    for arguments, name in (
        (Arguments((None, Sizes(learned))), r"more\[0\]"),
        (Arguments((), {"bias": {"a": [learned]}}), "bias"),
    ):
        with pytest.raises(RefusedError, match=f"b: it is called with {name}, which carries a gradient"):
            arguments.check("b", Block())
        with torch.no_grad():
            arguments.check("b", Block())


def test_equal_signatures_mean_the_same_operations():
    same = {"mask": torch.ones(2, 3), "sizes": [1, (2, 3)], "kind": "relative", "dtype": torch.float16}
    other = {**same, "mask": torch.zeros(2, 3)}
    assert signature_of(same) == signature_of(other) != signature_of({**same, "sizes": [1, (2, 4)]})
    assert signature_of({**same, "mask": torch.ones(2, 3).double()}) != signature_of(same)
    assert hash(call_signature("b", X, Arguments((STATE, None), same))) == hash(
        call_signature("b", X + 1, Arguments((STATE, None), other))
    )
    with pytest.raises(RefusedError, match="b: it is called with a Sizes, want tensors, numbers and texts"):
        call_signature("b", X, Arguments((Sizes(X),)))


class OfHuggingFace(nn.Module):
    """Describes its input as transformers' networks do, and takes no other."""

    def __init__(self, name: str, shape: tuple[int, ...], **config: object) -> None:
        super().__init__()
        self.main_input_name, self.shape = name, shape
        self.config = type("Config", (), config)()
        self.embed = nn.Embedding(12, 4) if "ids" in name else nn.Linear(shape[-1], 4)

    def forward(self, **inputs: Tensor) -> Tensor:
        (x,) = inputs.values()
        assert list(inputs) == [self.main_input_name] and tuple(x.shape[1:]) == self.shape
        return self.embed(x)


@pytest.mark.parametrize(
    "network",
    [
        OfHuggingFace("pixel_values", (3, 20, 20), image_size=20),
        OfHuggingFace("pixel_values", (1, 20, 24), image_size=[20, 24], num_channels=1),
        OfHuggingFace("pixel_values", (3, 64, 64)),  # no size stated: the usual ones are tried
        OfHuggingFace("pixel_values_videos", (6, 3, 16, 16), crop_size=16, frames_per_clip=6),
        OfHuggingFace("input_ids", (8,)),
    ],
    ids=["square", "grey", "no size", "video", "text"],
)
def test_an_example_follows_hugging_faces_description(network):
    example = guess_example(network)
    assert example is not None and list(example.kwargs) == [network.main_input_name] and not example.args
    network(**example.kwargs)
