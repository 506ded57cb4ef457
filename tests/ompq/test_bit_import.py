"""Widths of other tools, as they write them, for a network of torchvision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ompq.assignment import Assignment, resolve
from ompq.bit_import import read_layer_bits
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph, trace
from ompq.layer_names import match_names
from ompq.zoo import load_network


@pytest.fixture(scope="module")
def graph() -> NetworkGraph:
    torch.manual_seed(0)
    return trace(load_network("resnet18").module, (3, 32, 32))


@pytest.fixture(scope="module")
def wanted(graph: NetworkGraph) -> dict[str, int]:
    """Different widths for all groups."""
    return {
        layer: 2 + index % 7 for index, group in enumerate(graph.groups) for layer in group.layers
    }


def read(tmp_path: Path, content: object, graph: NetworkGraph, name: str = "bits.txt", **options):
    """The widths of a file, whatever its name."""
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return resolve(str(file), graph.groups, options.pop("quant_type", "PTQ"), **options)


def refuse(tmp_path: Path, content: object, graph: NetworkGraph, **options) -> str:
    with pytest.raises(OmpqError) as refused:
        read(tmp_path, content, graph, **options)
    told = str(refused.value)
    assert "\n" not in told
    return told


def scope(layer: str) -> str:
    """NNCF's name of a layer: the classes around, and the names in brackets."""
    classes = "".join(f"Sequential[{part}]/" for part in layer.split(".")[:-1])
    return f"ResNet/{classes}NNCFConv2d[{layer.rpartition('.')[2]}]/conv2d_0|WEIGHT"


def test_nncf(graph, wanted, tmp_path: Path) -> None:
    scopes = [[bits, scope(layer)] for layer, bits in wanted.items()]
    scopes += [[6, "/nncf_model_input_0|OUTPUT"], [6, "ResNet/ReLU[relu]/relu__0|OUTPUT"]]
    config = {
        "input_info": {"sample_size": [1, 3, 32, 32]},
        "compression": [
            {"algorithm": "quantization", "initializer": {"precision": {
                "type": "manual", "bitwidth_per_scope": scopes}}},
        ],
    }  # fmt: skip
    found = read(tmp_path, config, graph)
    assert found.layer_bits() == wanted
    assert found.act_bits == 6
    scopes[-1][0] = 4
    assert "give one width by `act_bits`" in refuse(tmp_path, config, graph)
    assert read(tmp_path, config, graph, act_bits=5).act_bits == 5


def test_nncf_of_earlier_versions(graph, wanted, tmp_path: Path) -> None:
    old = [
        [bits, f"TargetType.OPERATION_WITH_WEIGHTS {scope(layer).rpartition('/')[0]}"]
        for layer, bits in wanted.items()
    ]
    old.append([8, "TargetType.OPERATOR_POST_HOOK ResNet/ReLU[relu]/RELU_0"])
    found = read(tmp_path, {"bitwidth_per_scope": old}, graph)
    assert found.layer_bits() == wanted
    assert "holds no scopes of weights" in refuse(tmp_path, {"bitwidth_per_scope": [4]}, graph)


def test_modelopt_by_layer(graph, tmp_path: Path) -> None:
    algorithms = {"W4A8_AWQ": (4, 8), "W8A8_SQ_PER_CHANNEL": (8, 8), "INT4_AWQ": (4, None)}
    names = list(algorithms)
    chosen = {}
    for index, group in enumerate(graph.groups):
        chosen |= {f"model.{layer}": names[index % 2] for layer in group.layers}
    config = {
        "producer": {"name": "modelopt", "version": "0.41.0"},
        "quantization": {
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {
                layer: {"quant_algo": name, "group_size": 128} for layer, name in chosen.items()
            },
        },
    }
    found = read(tmp_path, config, graph)
    expected = {layer.removeprefix("model."): algorithms[name][0] for layer, name in chosen.items()}
    assert found.layer_bits() == expected
    assert set(found.activations) == {8}
    config["quantization"]["quantized_layers"]["model.fc"] = {"quant_algo": "NVFP4"}
    assert "model.fc has the format NVFP4" in refuse(tmp_path, config, graph)


def test_modelopt_in_one_format(graph, tmp_path: Path) -> None:
    config = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A8_AWQ"}}
    assert set(read(tmp_path, config, graph).widths) == {4}
    config["quantization"]["exclude_modules"] = ["fc"]
    assert "gives no bits to fc; every layer has 2 to 8 here" in refuse(tmp_path, config, graph)
    config["quantization"]["exclude_modules"] = ["layer4*"]
    assert "gives no bits to layer4.0.conv1" in refuse(tmp_path, config, graph)
    config["quantization"]["exclude_modules"] = ["layer4"]
    assert "gives no bits to layer4.0.conv1" in refuse(tmp_path, config, graph)
    # What this network does not have may well be left out of it.
    config["quantization"]["exclude_modules"] = ["lm_head", "*router*"]
    found = read(tmp_path, config, graph)
    assert set(found.widths) == {4} and set(found.activations) == {8}
    config["quantization"]["exclude_modules"] = "fc"
    assert "exclude_modules is 'fc'; write a list" in refuse(tmp_path, config, graph)


def test_modelopt_by_quantizer(graph, tmp_path: Path) -> None:
    config = {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": 8, "axis": 0},
            "*input_quantizer": {"num_bits": 8},
            "*layer4*weight_quantizer": {"num_bits": 4, "axis": 0},
            "*lm_head*": {"enable": False},
            "default": {"enable": False},
        },
        "algorithm": "max",
    }
    found = read(tmp_path, config, graph)
    for layer, bits in found.layer_bits().items():
        assert bits == (4 if layer.startswith("layer4") else 8)
    as_list = {
        "quant_cfg": [
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8}},
            {"quantizer_name": "*layer4*weight_quantizer", "cfg": {"num_bits": 4}},
        ]
    }
    assert read(tmp_path, as_list, graph).layer_bits() == found.layer_bits()
    config["quant_cfg"]["*fc*"] = {"enable": False}
    assert "gives no bits to fc" in refuse(tmp_path, config, graph)
    config["quant_cfg"]["*fc*"] = {"num_bits": [4, 3]}
    assert "*fc* has num_bits [4, 3], a format of floats" in refuse(tmp_path, config, graph)


def test_mct(graph, wanted, tmp_path: Path) -> None:
    selections = {
        "manual_weights_bit_width_selection_list": [
            {"filter": {"node_name": layer.replace(".", "_")}, "bit_width": bits, "attr": "weight"}
            for layer, bits in wanted.items()
        ],
        "manual_activation_bit_width_selection_list": [],
    }
    assert read(tmp_path, selections, graph).layer_bits() == wanted
    # With batch norms folded, and the widths in the attribute's own configuration.
    by_layer = {
        f"{layer.replace('.', '_')}_bn": {
            "activation_n_bits": 8,
            "attr_weights_configs_mapping": {"weight": {"weights_n_bits": bits}},
        }
        for layer, bits in wanted.items()
    }
    found = read(tmp_path, by_layer, graph)
    assert found.layer_bits() == wanted
    assert set(found.activations) == {8}
    assert "no node_name" in refuse(
        tmp_path, {"manual_weights_bit_width_selection_list": [{"bit_width": 4}]}, graph
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "layer,bits\n", "Layer Name,Weight Bits\n"])
def test_lines(delimiter: str, header: str, graph, wanted, tmp_path: Path) -> None:
    lines = [f"{layer}{delimiter} {bits}" for layer, bits in wanted.items()]
    text = "\ufeff" + header.replace(",", delimiter) + "\r\n".join(lines) + "\n\n"
    assert read(tmp_path, text, graph).layer_bits() == wanted


def test_globs_and_columns_in_lines(graph, tmp_path: Path) -> None:
    text = "bits,layer,act_bits\n4,*,6\n8,layer4.*,8\n2,conv1,8\n"
    found = read(tmp_path, text, graph)
    acts = found.layer_act_bits()
    for layer, bits in found.layer_bits().items():
        assert bits == (2 if layer == "conv1" else 8 if layer.startswith("layer4") else 4)
        assert acts[layer] == (8 if layer == "conv1" or layer.startswith("layer4") else 6)
    told = refuse(tmp_path, "*,4\nlayer9.*,8\n", graph)
    assert "layer9.*: the network has no such layer" in told


def test_plain_json_and_the_quantization_type(graph, wanted, tmp_path: Path) -> None:
    found = read(tmp_path, wanted, graph, name="bits.json", quant_type="QAT")
    assert found.layer_bits() == wanted
    assert found.listed[0] is False
    assert found.activations[0] == 8
    assert isinstance(found, Assignment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv9": 4}, "conv9 fit no layer of this network; the closest names are conv1"),
        ({"conv1": 9}, "conv1 has weight bits 9"),
        ({"conv1": 1}, "conv1 has weight bits 1"),
        ({"layer2.0.downsample.0": 2, "layer2.0.conv2": 3}, "tied layers have one width"),
    ],
)
def test_what_does_not_fit_is_named(change, message: str, graph, wanted, tmp_path: Path) -> None:
    told = refuse(tmp_path, {**wanted, **change}, graph)
    assert message in told
    assert "bits.txt" in told


def test_layers_that_are_not_listed_are_named(graph, wanted, tmp_path: Path) -> None:
    few = {layer: bits for layer, bits in wanted.items() if layer not in ("fc", "layer1.0.conv1")}
    told = refuse(tmp_path, few, graph)
    assert "gives no bits to layer1.0.conv1, fc; add a line for each" in told
    told = refuse(tmp_path, "conv1,4\n", graph)
    assert "and 15 more" in told or "more; add a line" in told


def test_lines_that_are_none(graph, tmp_path: Path) -> None:
    assert "the line 'conv1,four' is not a layer" in refuse(tmp_path, "fc,8\nconv1,four\n", graph)
    assert "conv1 is there twice" in refuse(tmp_path, "conv1,4\nconv1,8\n", graph)
    for content in ("", "just words", "[1, 2]", "{}", '{"format": "other/1"}', '{"a": "b"}'):
        assert "bits.txt" in refuse(tmp_path, content, graph)


def test_hawq_s_dictionaries_are_left_to_their_own_reader(tmp_path: Path) -> None:
    file = tmp_path / "hawq.json"
    file.write_text(json.dumps({"quant_input": 8, "stage1.unit1.quant_convbn1": 4}))
    assert read_layer_bits(file) is None
    assert read_layer_bits("[4, 3, 8]" * 1000) is None
    assert read_layer_bits(tmp_path) is None


LAYERS = ["stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.10.conv1", "head.fc"]


@given(
    before=st.sampled_from(["", "model.", "module.net.", "backbone/"]),
    behind=st.sampled_from(["", ".weight", "_bn", ".weight_quantizer", "/conv"]),
    joint=st.sampled_from([".", "_", "/"]),
    widths=st.lists(st.integers(2, 8), min_size=5, max_size=5),
)
def test_what_stands_around_all_names_is_taken_away(
    before: str, behind: str, joint: str, widths: list[int]
) -> None:
    wanted = dict(zip(LAYERS, widths, strict=True))
    given_names = {
        f"{before}{layer.replace('.', joint)}{behind}": bits for layer, bits in wanted.items()
    }
    assert match_names(given_names, LAYERS, "a file") == wanted


def test_what_stands_in_front_of_the_network_s_own_names() -> None:
    layers = [f"net.{layer}" for layer in LAYERS]
    given_names = dict.fromkeys(LAYERS, 4)
    assert match_names(given_names, layers, "a file") == dict.fromkeys(layers, 4)
    with pytest.raises(OmpqError, match="several widths"):
        match_names({"stem.0": 4, "stem_0": 8}, ["stem.0"], "a file")


def test_a_small_network_of_numbered_layers(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    graph = trace(module.eval(), (3, 8, 8))
    assert read(tmp_path, "0,4\n3,8\n", graph).widths == (4, 8)
    assert read(tmp_path, "model.0,4\nmodel.3,8\n", graph).widths == (4, 8)


def test_a_quantizer_of_several_steps_is_refused(graph, tmp_path: Path) -> None:
    steps = [{"num_bits": 4}, {"num_bits": [4, 3]}]
    config = {"quant_cfg": {"*weight_quantizer": {"num_bits": 8}, "*fc.weight_quantizer": steps}}
    assert "several steps" in refuse(tmp_path, config, graph)


def test_a_name_with_two_widths_is_refused(graph, wanted, tmp_path: Path) -> None:
    text = json.dumps(wanted)
    again = text.replace("{", '{"fc": 2, ', 1)
    assert "fc is there twice" in refuse(tmp_path, again, graph)


@pytest.mark.parametrize("width", ["4", 4.0, 4.5, float("nan")])
def test_widths_that_are_no_whole_numbers_are_named(width, graph, wanted, tmp_path: Path) -> None:
    told = refuse(tmp_path, {**wanted, "fc": width}, graph)
    assert f"fc has {width!r} bits" in told
