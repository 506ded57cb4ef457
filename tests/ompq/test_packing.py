"""Packed tensors of a network, which are the plain ones again once unpacked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ompq.packing import from_table, pack, to_table, unpack

Network = tuple[dict[str, Tensor], dict[str, Any]]
SHAPES = [(3, 2, 3, 3), (5, 7), (1, 1), (4, 1, 3, 1)]
BIASES: dict[str, tuple[torch.dtype, int]] = {
    "none": (torch.int32, 0),
    "narrow": (torch.int32, 2**15),
    "wide": (torch.int32, 2**31),
    "float": (torch.float32, 9),
}


def draw_layer(draw: st.DrawFn, name: str, generator: torch.Generator) -> Network:
    bits, shape = draw(st.integers(2, 8)), draw(st.sampled_from(SHAPES))
    low = draw(st.sampled_from([0, -(2 ** (bits - 1)), 1 - 2 ** (bits - 1)]))
    high = low + 2**bits - 1 - (low == 1 - 2 ** (bits - 1))
    channels = shape[:1] if draw(st.booleans()) else ()
    kind = torch.uint8 if low == 0 else torch.int8
    first, last = draw(st.sampled_from([(0, 1), (low, high + 1), (-3000, 3000)]))
    tensors = {
        "weight": torch.randint(low, high + 1, shape, generator=generator).to(kind),
        "weight_scale": torch.rand(channels, generator=generator) + 0.1,
        "weight_zero_point": torch.randint(first, last, channels, generator=generator).int(),
    }
    dtype, reach = BIASES[draw(st.sampled_from(list(BIASES)))]
    if reach:
        tensors["bias"] = torch.randint(-reach, reach, shape[:1], generator=generator).to(dtype)
    named = {f"{name}.{key}": value for key, value in tensors.items()}
    return named, {"bits": bits, "low": low, "high": high}


@st.composite
def networks(draw: st.DrawFn) -> Network:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    tensors: dict[str, Tensor] = {"norm.weight": torch.rand(3, generator=generator)}
    layers, activations = {}, {}
    names = [f"block.{number}" for number in range(draw(st.integers(1, 4)))]
    for name in names:
        own, layers[name] = draw_layer(draw, name, generator)
        tensors |= own
    integers = draw(st.booleans())
    for path in ("first", "second"):
        activations[path] = {"bits": 8, "enabled": draw(st.booleans())}
        if activations[path]["enabled"]:
            before = "" if integers else "activations."
            tensors[f"{before}{path}.scale"] = torch.rand((), generator=generator) + 0.1
            tensors[f"{before}{path}.zero_point"] = torch.tensor(-7, dtype=torch.int32)
    if draw(st.booleans()):
        tensors["norm.bias"] = tensors["norm.weight"].clone()
    description: dict[str, Any] = {
        "arithmetic": "integers" if integers else "float",
        "layers": layers,
        "activations": activations,
        "groups": [names[:1], [*names[1:], "elsewhere"]],
        "other": [1, {"a": 2}],
    }
    if integers:
        description["reads"] = dict.fromkeys(names, 8)
    return tensors, description


@given(networks(), st.booleans())
def test_what_is_unpacked_is_what_was_packed(network: Network, entropy: bool) -> None:
    tensors, description = network
    found, described = unpack(*pack(tensors, description, entropy=entropy))
    assert described == description
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def make_network(**changes: Any) -> Network:
    """Two layers of 4 bits, each of 30 weights in 3 channels."""
    tensors: dict[str, Tensor] = {}
    layers: dict[str, Any] = {}
    for name in ("a", "b"):
        generator = torch.Generator().manual_seed(len(layers))
        tensors[f"{name}.weight"] = torch.randint(0, 16, (3, 10), generator=generator).byte()
        tensors[f"{name}.weight_scale"] = torch.rand(3, generator=generator)
        tensors[f"{name}.weight_zero_point"] = torch.tensor([1, 2, 15], dtype=torch.int32)
        tensors[f"{name}.bias"] = torch.tensor([1, -2, 3], dtype=torch.int32)
        layers[name] = {"bits": 4, "low": 0, "high": 15}
    description: dict[str, Any] = {"layers": layers, "activations": {}, "groups": [["a"], ["b"]]}
    return tensors | changes, description


def test_every_number_takes_the_bits_it_needs() -> None:
    packed, _ = pack(*make_network())
    sizes = {name: value.numel() * value.element_size() for name, value in packed.items()}
    assert sizes == {
        "a.weight": 15,
        "b.weight": 15,
        "*.weight_scale": 24,
        "*.weight_zero_point": 4,
        "*.bias.int16": 12,
    }


def test_tensors_of_equal_content_are_held_once() -> None:
    tensors, description = make_network()
    tensors |= {"b.weight": tensors["a.weight"], "norm": torch.ones(5), "other": torch.ones(5)}
    tensors |= {"column": torch.ones(5, 1), "integers": torch.ones(5, dtype=torch.int32)}
    packed, described = pack(tensors, description)
    assert described["same"] == {"b.weight": "a.weight", "other": "norm"}
    assert not {"b.weight", "other"} & packed.keys()
    assert {"column", "integers"} <= packed.keys()


def test_codes_are_taken_where_they_are_smaller() -> None:
    rare = torch.zeros(3, 500, dtype=torch.uint8)
    rare[0, 0] = 15
    noise = torch.randint(0, 16, (3, 500), generator=torch.Generator().manual_seed(0)).byte()
    network = make_network(**{"a.weight": rare, "b.weight": noise})
    plain, coded = pack(*network), pack(*network, entropy=True)
    assert plain[1]["layers"]["code"] == "bits"
    assert coded[1]["layers"]["code"] == ["huffman", "bits"]
    assert len(coded[0]["a.weight"]) < 120 < len(plain[0]["a.weight"]) == 750
    assert torch.equal(coded[0]["b.weight"], plain[0]["b.weight"])


def test_a_table_says_once_what_is_alike() -> None:
    rows = {"a": {"bits": 4, "shape": [3]}, "b": {"bits": 4, "shape": [3], "bias": True}}
    table = to_table(rows)
    assert table == {"names": ["a", "b"], "bits": 4, "shape": [[3], [3]], "bias": [None, True]}
    assert from_table(table) == rows
    assert from_table(to_table({})) == {}
    with pytest.raises(ValueError, match="1 values of bits for 2 names"):
        from_table({"names": ["a", "b"], "bits": [4]})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.weight", "30 values of 4 bits are 15 bytes"),
        ("*.weight_scale", r"\*.weight_scale of shape \(5,\) does not hold enough values"),
        ("*.weight_zero_point", "does not hold enough values"),
        ("*.bias.int16", "does not hold enough values"),
    ],
)
def test_tensors_of_other_lengths_are_refused(name: str, words: str) -> None:
    packed, description = pack(*make_network())
    with pytest.raises(ValueError, match=words):
        unpack(packed | {name: packed[name][:-1]}, description)
    longer = torch.cat([packed[name], packed[name][:1]])
    with pytest.raises(ValueError, match=r"holds 1 values too many|are 15 bytes"):
        unpack(packed | {name: longer}, description)
    with pytest.raises(ValueError):
        unpack(packed | {name: packed[name][None]}, description)
    del packed[name]
    with pytest.raises(KeyError, match=name.replace("*", r"\*")):
        unpack(packed, description)
