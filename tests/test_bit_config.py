"""The published rows and their lookup, as data; their sizes are tested with the networks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bit_config import PUBLISHED, Published, Uniform, lookup, published_for

GROUPS = {
    ("resnet18", "QAT"): 16,
    ("resnet18", "PTQ"): 18,
    ("resnet50", "QAT"): 48,
    ("mobilenetv2", "PTQ"): 53,
}


def test_there_are_fifteen_rows_of_the_right_lengths() -> None:
    assert len(PUBLISHED) == 15
    for name, row in PUBLISHED.items():
        assert row.name == name
        assert len(row.bits) == GROUPS[row.network, row.quant_type]
        assert set(row.bits) <= ({2, 3, 4} if row.quant_type == "PTQ" else set(range(4, 9)))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("modelsize_6.7_a6_75B", [8, 8, 8, 8, 7, 8, 8, 8, 8, 4, 6, 8, 4, 4, 4, 4]),
        ("modelsize_18.7_a5_156BOP", [8] * 23 + [4] + [8] * 16 + [4, 4, 5, 4, 8, 8, 4, 8]),
        ("modelsize_21.2_a7_226BOP", [8] * 40 + [4, 4, 8, 6, 8, 8, 8, 8]),
        ("resnet18_4.5", [4, 3, 3, 4, 4, 4, 4, 4, 4, 4, 3, 3, 4, 4, 3, 3, 3, 3]),
        ("mobilenetv2_1.3", [4] * 50 + [3, 3, 2]),
    ],
)
def test_rows_written_as_runs_are_the_published_lists(name: str, bits: list[int]) -> None:
    found = lookup(name)
    assert isinstance(found, Published) and list(found.bits) == bits


def test_published_accuracies() -> None:
    accuracies = {row.name: row.top1 for row in PUBLISHED.values() if row.top1 is not None}
    assert accuracies == {
        "modelsize_6.7_a6_75B": 72.08,
        "modelsize_6.7_a8_97B": 72.30,
        "modelsize_16.0_a5_141BOP": 76.20,
        "modelsize_18.7_a5_156BOP": 76.28,
        "resnet18_4.0": 69.34,
        "resnet18_4.5": 69.73,
        "resnet18_5.5": 69.38,
        "mobilenetv2_1.3": 69.51,
        "mobilenetv2_1.5": 71.27,
    }


@pytest.mark.parametrize("width", range(2, 9))
def test_uniform_schemes(width: int) -> None:
    assert lookup(f"uniform{width}") == Uniform(f"uniform{width}", width)
    assert lookup(f"uniform{width}_a6") == Uniform(f"uniform{width}_a6", width, 6)


@pytest.mark.parametrize("name", ["uniform1", "uniform9", "uniform4_a9", "uniform44", "", "x\ny"])
def test_unknown_names_list_what_exists(name: str) -> None:
    with pytest.raises(LookupError) as refused:
        lookup(name)
    text = str(refused.value)
    assert "\n" not in text and "modelsize_6.7_a6_75B" in text and "uniform4" in text


def test_the_closest_name_is_listed_first() -> None:
    with pytest.raises(LookupError, match=r"there are modelsize_6\.7_a6_75B, "):
        lookup("modelsize_6.7_a6_75")


@pytest.mark.parametrize("network", ["mobilenetv2", "mobilenet_v2", "torchvision:mobilenet_v2"])
def test_a_network_goes_by_several_names(network: str) -> None:
    assert lookup("mobilenetv2_1.5", network, "PTQ") is published_for(network, 1.5)


def test_a_scheme_for_something_else_says_for_what() -> None:
    with pytest.raises(LookupError, match=r"is for resnet50 \(QAT\), not for resnet18"):
        lookup("modelsize_16.0_a5_141BOP", "resnet18")
    with pytest.raises(LookupError, match="is for QAT"):
        lookup("modelsize_16.0_a5_141BOP", "resnet50", "PTQ")
    assert lookup("uniform4", "anything", "PTQ").name == "uniform4"


def test_a_size_that_is_not_published_lists_those_that_are() -> None:
    with pytest.raises(LookupError, match=r"sizes: 3\.0, 3\.5, 4\.0, 4\.5, 5\.0, 5\.5"):
        published_for("resnet18", 4.2)


@pytest.mark.parametrize("change", [{"bits": (4, 9)}, {"bits": ()}, {"quant_type": "FP8"}])
def test_rows_check_themselves(change: dict) -> None:
    with pytest.raises(ValueError, match=r"resnet18_4\.5"):
        replace(PUBLISHED["resnet18_4.5"], **change)
