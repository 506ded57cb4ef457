"""A dozen networks of the libraries, of every kind, from tracing to integers."""

from __future__ import annotations

import pytest

from benchmarks import zoo

# Library and name → whether all of it runs on integers.
EXPECTED = {
    "torchvision:squeezenet1_1": True,
    "torchvision:shufflenet_v2_x0_5": True,
    "torchvision:mnasnet0_5": True,
    "torchvision:mobilenet_v3_small": True,
    "timm:test_resnet": True,
    "timm:test_byobnet": True,
    "timm:test_convnext": True,
    "timm:test_efficientnet": True,
    "timm:test_efficientnet_gn": True,
    "timm:test_nfnet": False,
    "timm:test_vit": True,
    "timm:test_mambaout": True,
}
# Random networks amplify: noise of the size of 8 bits changes their logits by as much.
LARGEST_ERROR = 0.6


@pytest.mark.parametrize("name", EXPECTED)
def test_a_network_of_a_library_is_quantized_and_says_what_stays_in_float(name: str) -> None:
    found = zoo.examine(*name.split(":"), zoo.Limits(seconds=600, parameters=20_000_000))
    assert found.outcome == (zoo.INTEGERS if EXPECTED[name] else zoo.PARTLY), found
    assert found.error is not None and found.error < LARGEST_ERROR
    assert bool(found.detail) != EXPECTED[name]
    assert 0 < found.quantized <= found.parameters


def test_the_networks_are_all_of_torchvision_and_the_smallest_of_every_family_of_timm() -> None:
    chosen = zoo.choose_networks()
    timm = [name for library, name in chosen if library == "timm"]
    assert len(chosen) == len(set(chosen)) and len(timm) >= 200
    assert {"convnext_atto", "mobilevit_xxs"} <= set(timm)
    assert "convnext_base" not in timm
    assert ("torchvision", "vit_b_16") in chosen
