"""Layers by exact names and globs."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ompq.errors import OmpqError
from ompq.layer_patterns import match_layers

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer2.0.conv1", "fc"]
PATTERNS = st.sampled_from(
    [*LAYERS, "*", "layer1.*", "*.conv1", "layer?.0.*", "conv[12]", "layer[!1].*", "f*"]
)


@given(st.lists(st.tuples(PATTERNS, st.integers(2, 8)), max_size=6))
def test_exact_names_go_before_globs_and_later_globs_before_earlier(
    given_patterns: list[tuple[str, int]],
) -> None:
    patterns = dict(given_patterns)
    found = match_layers(patterns, LAYERS, "`pins`")
    for layer in LAYERS:
        globs = [p for p in patterns if p not in LAYERS and fnmatch.fnmatchcase(layer, p)]
        chosen = layer if layer in patterns else globs[-1] if globs else None
        assert found.get(layer) == (None if chosen is None else (chosen, patterns[chosen]))


@pytest.mark.parametrize("pattern", ["layer9.*", "layer1.0.conv3", "LAYER1.0.CONV1", "[", ""])
def test_a_pattern_without_a_layer_is_named_with_the_closest_names(pattern: str) -> None:
    with pytest.raises(OmpqError) as refused:
        match_layers({"*": 4, pattern: 8}, LAYERS, "`pins`")
    told = str(refused.value)
    assert told.startswith(f"`pins` {pattern}: the network has no such layer; the closest names")
    assert sum(layer in told for layer in LAYERS) >= 3
    assert "\n" not in told
    if "0.conv" in pattern:
        assert told.index("layer1.0.conv") < told.index(",")
