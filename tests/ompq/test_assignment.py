"""Bit lists, schemes and files on a network; the published sizes and BOPs."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision

import bit_config
from ompq.assignment import assign, resolve, uniform
from ompq.errors import OmpqError
from ompq.graph import Group, trace

# From the published configurations: size in MB, and BOPs in G where they are published.
PUBLISHED = {
    "modelsize_6.7_a6_75B": ("resnet18", 6.6986, 75.10),
    "modelsize_6.7_a8_97B": ("resnet18", 6.6986, 97.51),
    "modelsize_16.0_a5_141BOP": ("resnet50", 16.0252, 141.03),
    "modelsize_18.7_a5_156BOP": ("resnet50", 18.7404, 156.42),
    "modelsize_21.2_a7_226BOP": ("resnet50", 21.1809, 226.16),
    "resnet18_3.0": ("resnet18", 2.9983, None),
    "resnet18_3.5": ("resnet18", 3.4988, None),
    "resnet18_4.0": ("resnet18", 4.0000, None),
    "resnet18_4.5": ("resnet18", 4.4994, None),
    "resnet18_5.0": ("resnet18", 4.9997, None),
    "resnet18_5.5": ("resnet18", 5.4997, None),
    "mobilenetv2_1.5": ("mobilenet_v2", 1.5185, None),
    "mobilenetv2_1.3": ("mobilenet_v2", 1.2800, None),
    "mobilenetv2_1.1": ("mobilenet_v2", 1.0908, None),
    "mobilenetv2_0.9": ("mobilenet_v2", 0.8953, None),
}


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Group, ...]]:
    with torch.device("cpu"):
        return {
            name: trace(getattr(torchvision.models, name)(), (3, 224, 224)).groups
            for name in ("resnet18", "resnet50", "mobilenet_v2")
        }


@pytest.mark.parametrize("scheme", PUBLISHED)
def test_published_sizes_and_bops(scheme: str, networks) -> None:
    name, size, bops = PUBLISHED[scheme]
    row = bit_config.lookup(scheme)
    assignment = resolve(scheme, networks[name], row.quant_type)
    assert round(assignment.size_mb, 4) == size
    if bops is not None:
        assert round(assignment.published_bops_g, 2) == bops


def test_the_published_miscount_is_the_published_ones_alone(networks) -> None:
    by_name = resolve("modelsize_16.0_a5_141BOP", networks["resnet50"], "QAT")
    by_list = resolve(str(by_name.bits), networks["resnet50"], "QAT", act_bits=5)
    assert round(by_list.published_bops_g, 2) == round(by_name.bops_g, 2) == 139.56


def test_uniform_keeps_stem_and_classifier_at_eight(networks) -> None:
    groups = networks["resnet18"]
    assignment = resolve("uniform3", groups, "PTQ")
    assert assignment.widths == (8, *[3] * 16, 8)
    assert assignment.layer_bits()["layer2.0.downsample.0"] == 3
    assert uniform(groups, 3).size_mb == assignment.size_mb


def test_activation_bits_of_the_scheme_and_of_the_user(networks) -> None:
    groups = networks["resnet18"]
    assert resolve("modelsize_6.7_a6_75B", groups, "QAT").act_bits == 6
    assert resolve("modelsize_6.7_a6_75B", groups, "QAT", act_bits=4).act_bits == 4
    assert resolve("[4]" + "", [groups[1]], "QAT").act_bits == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[4, 4]", "has 2 entries where PTQ of this network needs 18, one for each of: conv1"),
        ("[" + "4," * 17 + "9]", "entry 18 is 9"),
        ("[" + "4," * 17 + "4.0]", r"entry 18 is 4\.0"),
        ("[" + "4," * 17 + "True]", "entry 18 is True"),
        ("[4, __import__('os')]", "is not a list"),
        ("[4, 3", "is not a list"),
        ("uniform1", "no configuration is called"),
        ("modelsize_16.0_a5_141BOP", "is for resnet50"),
        ("nowhere.json", "does not exist"),
    ],
)
def test_configurations_that_do_not_fit(text: str, message: str, networks) -> None:
    with pytest.raises(OmpqError, match=message):
        resolve(text, networks["resnet18"], "PTQ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON file"),
        ("[" * 100000, "is no JSON file"),
        ('{"bits": [4]}', "is not a bit configuration"),
        ('{"format": "ompq-bit-config/1", "model": "x"}', "lacks quant_type"),
    ],
)
def test_files_that_are_no_configuration(content: str, message: str, networks, tmp_path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(OmpqError, match=message):
        resolve(str(tmp_path / "bad.json"), networks["resnet18"], "PTQ")


def test_a_file_for_another_network(networks, tmp_path) -> None:
    content = {
        "format": "ompq-bit-config/1", "model": "resnet18", "quant_type": "PTQ", "act_bits": 8,
        "bits": [4] * 18,
        "groups": [
            {"layers": list(g.layers), "bits": 4, "in_list": True} for g in networks["resnet18"]
        ],
    }  # fmt: skip
    (tmp_path / "r18.json").write_text(json.dumps(content))
    assert resolve(str(tmp_path / "r18.json"), networks["resnet18"], "PTQ").bits == [4] * 18
    for text in ("4," * 17 + "4", "4 " * 18, "[" + "4 " * 18 + "]"):
        assert resolve(text, networks["resnet18"], "PTQ").bits == [4] * 18
    # As editors of other systems write it.
    (tmp_path / "r18.json").write_text(json.dumps(content), encoding="utf-8-sig")
    assert resolve(str(tmp_path / "r18.json"), networks["resnet18"], "PTQ").bits == [4] * 18
    with pytest.raises(OmpqError, match=r"^`bit_cfg` .* is a folder without bit_config\.json"):
        resolve(str(tmp_path), networks["resnet18"], "PTQ")
    (tmp_path / "bit_config.json").write_text(json.dumps(content))
    assert resolve(str(tmp_path), networks["resnet18"], "PTQ").bits == [4] * 18
    with pytest.raises(OmpqError, match=r"is for resnet18 with 18 groups.*no entry for"):
        resolve(str(tmp_path / "r18.json"), networks["mobilenet_v2"], "PTQ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": [4] * 17 + [2]}, r"`bits` is \[4, .*2\], and its groups have \[4, .*4\]; change"),
        ({"groups": [1]}, "lacks layers, bits or in_list of a group"),
        ({"groups": [{"layers": [["x"]], "bits": 4, "in_list": True}]}, "lacks layers"),
        ({"groups": [{"layers": None, "bits": 4, "in_list": True}]}, "lacks layers"),
    ],
)
def test_a_file_that_was_changed_by_hand_in_part(
    change: dict[str, object], message: str, networks, tmp_path
) -> None:
    groups = [{"layers": list(g.layers), "bits": 4, "in_list": True} for g in networks["resnet18"]]
    content = {
        "format": "ompq-bit-config/1", "model": "resnet18", "quant_type": "PTQ", "act_bits": 8,
        "bits": [4] * 18, "groups": groups,
    }  # fmt: skip
    (tmp_path / "changed.json").write_text(json.dumps(content | change))
    with pytest.raises(OmpqError, match=message):
        resolve(str(tmp_path / "changed.json"), networks["resnet18"], "PTQ")


def test_assign_counts_pinned_activations_at_eight(networks) -> None:
    assignment = assign(networks["resnet18"], "QAT", [4] * 16, 5)
    assert assignment.activations == (8, *[5] * 16, 8)


@pytest.mark.parametrize("act_bits", [0, 1, 9, 16, -3])
@pytest.mark.parametrize("given", ["uniform4", "resnet18_4.5"])
def test_activation_widths_that_no_quantizer_knows(given: str, act_bits: int, networks) -> None:
    with pytest.raises(OmpqError, match="whole numbers from 2 to 8"):
        resolve(given, networks["resnet18"], "PTQ", act_bits=act_bits)
