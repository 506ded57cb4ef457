"""Weights of the fast ONNX form: what is packed comes out again, in the size that was promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

onnx = pytest.importorskip("onnx")

from onnx import TensorProto  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from ompq.export.onnx.builder import GraphBuilder  # noqa: E402
from ompq.export.onnx.weights import (  # noqa: E402
    add_codes,
    code_weight,
    fits_int8,
    pack_part,
    split_width,
)

LENGTHS = (1, 7, 8, 9, 63, 64, 65, 1001)


def unpack(codes: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Compute what a graph makes of packed codes; return it, and the bytes of codes in it."""
    builder = GraphBuilder()
    builder.expose(add_codes(builder, codes, bits, "layer"))
    info = ("logits", TensorProto.UINT8, codes.shape)
    model = builder.build("codes", [], [info], {})
    held = sum(
        len(constant.raw_data)
        for constant in model.graph.initializer
        if constant.name.startswith("layer.")
    )
    return ReferenceEvaluator(model).run(None, {})[0], held


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("length", LENGTHS)
def test_codes_come_out_of_the_graph_as_they_went_in(bits: int, length: int) -> None:
    codes = np.random.default_rng(length).integers(0, 2**bits, length).astype(np.uint8)
    found, held = unpack(codes, bits)
    assert found.dtype == np.uint8
    assert (found == codes).all()
    assert held <= -(-length * bits // 8) + 7


@given(st.integers(1, 8), st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 3)))
@settings(max_examples=20, deadline=None)
def test_codes_keep_their_shape(bits: int, shape: tuple[int, ...]) -> None:
    codes = (np.arange(np.prod(shape)) % 2**bits).astype(np.uint8).reshape(shape)
    found, _ = unpack(codes, bits)
    assert found.shape == shape
    assert (found == codes).all()


@given(st.sampled_from((1, 2, 4)), st.data())
@settings(max_examples=30, deadline=None)
def test_a_part_is_a_stream_of_bits_the_lowest_first(width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    values = data.draw(arrays(np.uint8, count, elements=st.integers(0, 2**width - 1)))
    stream = int.from_bytes(pack_part(values, width).tobytes(), "little")
    assert [(stream >> (width * i)) % 2**width for i in range(count)] == values.tolist()


@pytest.mark.parametrize("bits", range(1, 8))
def test_the_parts_of_a_width_add_up_to_it(bits: int) -> None:
    assert sum(split_width(bits)) == bits


@given(
    arrays(
        np.int64,
        st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 3)),
        elements=st.integers(-128, 127),
    )
)
@settings(max_examples=60, deadline=None)
def test_codes_and_offsets_stand_for_the_integers(whole: np.ndarray) -> None:
    coded = code_weight(whole)
    assert (coded.codes.astype(np.int64) + coded.offset == whole).all()
    assert coded.codes.max() < 2**coded.bits


def test_channels_get_offsets_of_their_own_where_that_takes_fewer_bits() -> None:
    rng = np.random.default_rng(0)
    # Asymmetric 4 bits: q - zero_point lies elsewhere in every channel.
    whole = rng.integers(0, 16, (8, 500)) - np.arange(8).reshape(8, 1) * 2
    assert code_weight(whole).bits == 4
    assert code_weight(whole).offset.shape == (8, 1)
    # Not where the offsets would cost more than they save.
    assert code_weight(whole[:, :6]).bits == 5


def test_asymmetric_eight_bits_alone_exceed_int8() -> None:
    assert fits_int8(np.array([[-128, 127]]))
    assert fits_int8(np.array([[-127, 0]]))  # 7 bits, all below their zero point
    assert not fits_int8(np.array([[-129, 0]]))
    assert not fits_int8(np.array([[0, 128]]))
