"""HAWQ's dictionaries on networks that call their modules otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.zoo import load_network
from QAT.hawq import match_dictionary, read_dictionary


@pytest.fixture(scope="module")
def resnet18() -> NetworkGraph:
    return trace(load_network("resnet18").module, (3, 64, 64))


def of_resnet18() -> dict[str, int]:
    """Every entry that HAWQ has for ResNet-18."""
    named = {"quant_input": 8, "quant_init_block_convbn": 8, "quant_act_int32": 16}
    for stage in range(1, 5):
        for unit in (1, 2):
            place = f"stage{stage}.unit{unit}."
            named |= {f"{place}quant_act": 6, f"{place}quant_convbn1": 3 + stage}
            named |= {f"{place}quant_act1": 5, f"{place}quant_convbn2": 2 + unit}
            named[f"{place}quant_act_int32"] = 16
            if stage > 1 and unit == 1:
                named[f"{place}quant_identity_convbn"] = 7
    return named | {"quant_act_output": 8, "quant_output": 8}


def test_entries_reach_the_layers_that_they_mean(resnet18: NetworkGraph) -> None:
    chosen = match_dictionary(of_resnet18(), resnet18)
    weights, reads = chosen.layer_bits(), chosen.layer_act_bits()
    assert (weights["conv1"], weights["fc"]) == (8, 8)
    assert weights["layer1.0.conv1"] == 4 and weights["layer4.1.conv1"] == 7
    assert weights["layer3.0.conv2"] == 3 and weights["layer3.1.conv2"] == 4
    assert weights["layer2.0.downsample.0"] == 7
    assert reads["layer2.0.conv1"] == reads["layer2.0.downsample.0"] == 6
    assert reads["layer2.0.conv2"] == 5 and reads["fc"] == 8
    layers = resnet18.layers
    bits = sum(layers[name].params * width for name, width in weights.items())
    assert chosen.size_mb == pytest.approx(bits / 8 / 2**20)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_units_are_found_by_structure(name: str) -> None:
    graph = trace(load_network(name).module, (3, 64, 64))
    units = {"resnet50": [3, 4, 6, 3], "mobilenet_v2": [1, 2, 3, 4, 3, 3, 1]}[name]
    places = [f"stage{s + 1}.unit{u + 1}" for s, n in enumerate(units) for u in range(n)]
    named = {f"{place}.quant_convbn1": 4 for place in places} | {"quant_init_convbn": 8}
    named |= {"quant_final_block_convbn": 5} if name == "mobilenet_v2" else {}
    chosen = match_dictionary(named, graph).layer_bits()
    assert list(chosen.values()).count(4) == len(places)
    if name == "mobilenet_v2":
        assert chosen["features.18.0"] == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage1.unit1.quant_convbn3": 4}, "stage1.unit1.quant_convbn3 .* fits nothing"),
        ({"stage1.unit1.quant_identity_convbn": 4}, "fits nothing"),
        ({"quant_act9": 4}, "quant_act9"),
        ({"nonsense": 4}, "nonsense"),
        ({"stage5.unit1.quant_act": 4}, "9 units, this network has 8"),
        ({"quant_act_int32": 8}, "16"),
        ({"stage1.unit1.quant_convbn1": 9}, "9"),
    ],
)
def test_an_entry_that_fits_nothing_is_named(
    change: dict[str, int], words: str, resnet18: NetworkGraph
) -> None:
    with pytest.raises(OmpqError, match=words):
        match_dictionary(of_resnet18() | change, resnet18)


def test_literals_and_files_are_read_and_never_run(tmp_path: Path) -> None:
    file = tmp_path / "bits.json"
    file.write_text(json.dumps({"quant_input": 8}))
    assert read_dictionary(str(file)) == read_dictionary("{'quant_input': 8}") == {"quant_input": 8}
    assert read_dictionary("uniform4") is None and read_dictionary("[4, 3]") is None
    file.write_text(json.dumps({"format": "ompq-bit-config/1"}))
    assert read_dictionary(str(file)) is None
    for text in ("{'a': __import__('os')}", "{", "{'a': 'b'}"):
        with pytest.raises(OmpqError):
            read_dictionary(text)


def test_a_dictionary_of_nothing_and_the_rest_of_a_bit_configuration(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="is empty"):
        read_dictionary("{}")
    file = tmp_path / "bits.json"
    file.write_text(json.dumps({"model": "resnet18", "groups": []}))
    assert read_dictionary(str(file)) is None
    file.write_text(json.dumps({"quant_input": 8}), encoding="utf-8-sig")
    assert read_dictionary(str(file)) == {"quant_input": 8}
