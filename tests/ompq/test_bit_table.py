"""Lines of layer and bits: which column is what, and what is no such line."""

from __future__ import annotations

import pytest

from ompq.bit_table import read_bit_table
from ompq.errors import OmpqError


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("layer,bits", "a,4", ("a", 4, None)),
        ("layer,a_bits,w_bits", "a,6,4", ("a", 4, 6)),
        ("layer,bits_a,bits_w", "a,6,4", ("a", 4, 6)),
        ("layer,wbits,abits", "a,4,6", ("a", 4, 6)),
        ("name,Activation bits,Weight bits", "a,6,4", ("a", 4, 6)),
        ("layer,output_bits,weight_bits", "a,6,4", ("a", 4, None)),
        ("layer,weight_bits,bias_bits", "a,4,32", ("a", 4, None)),
        ("name,kernel_width,bits", "a,3,4", ("a", 4, None)),
        ("layer_id,layer_name,bits", "7,a,4", ("a", 4, None)),
        ("layer_type,name,num_bits", "conv,a,4", ("a", 4, None)),
        ("name,layer_bits", "a,4", ("a", 4, None)),
        ("bits,act_bits,layer", "4,6,a", ("a", 4, 6)),
        ("Schicht,Breite", "a,4", ("a", 4, None)),
    ],
)
def test_columns_are_known_by_their_heads(
    header: str, line: str, expected: tuple[str, int, int | None]
) -> None:
    assert read_bit_table(f"{header}\n{line}\n", "x.csv") == [expected]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layer,bits_before,bits_after\na,8,4", "several columns may be the bits (bits_before"),
        ("layer,a_bits,act_bits,bits\na,8,8,4", "several columns may be the bits (a_bits"),
        ("conv1,int8\n*,4", "the first line, conv1, int8, names no column of bits"),
        ("layer,shape\nconv1,3", "names no column of bits"),
        ("conv1,4\nfc,4.5", "the line 'fc,4.5' is not a layer and its bits"),
        (f"conv1,4\nfc,{'9' * 5000}", "is not a layer and its bits"),
    ],
)
def test_what_is_no_width_is_named(text: str, told: str) -> None:
    with pytest.raises(OmpqError) as caught:
        read_bit_table(text, "x.csv")
    assert told in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_no_table() -> None:
    assert read_bit_table("", "x.csv") is None
    assert read_bit_table("resnet18\n", "x.csv") is None
