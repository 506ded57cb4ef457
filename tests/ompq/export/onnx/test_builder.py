"""Graphs of ONNX are built by name, with shared constants, and checked."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

import ompq  # noqa: E402
from ompq.errors import OmpqError  # noqa: E402
from ompq.export.onnx.builder import (  # noqa: E402
    INPUT_NAME,
    IR_VERSION,
    OPSET,
    OUTPUT_NAME,
    GraphBuilder,
    image_shape,
)

FLOAT = onnx.TensorProto.FLOAT


def build_doubling(builder: GraphBuilder) -> onnx.ModelProto:
    doubled = builder.add("Mul", [INPUT_NAME, builder.constant(np.float32(2))], "double it!")
    builder.expose(doubled)
    shape = image_shape((1, 2, 2))
    return builder.build(
        "doubling",
        [(INPUT_NAME, FLOAT, shape)],
        [(OUTPUT_NAME, FLOAT, shape)],
        {"mean": "0.5"},
    )


def test_a_model_says_what_it_is_and_runs_on_batches_of_any_size() -> None:
    model = build_doubling(GraphBuilder())
    assert [entry.version for entry in model.opset_import] == [OPSET]
    assert model.ir_version == IR_VERSION
    assert (model.producer_name, model.producer_version) == ("ompq", ompq.__version__)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"mean": "0.5"}
    session = runtime.InferenceSession(model.SerializeToString())
    for count in (1, 3):
        images = np.arange(4 * count, dtype=np.float32).reshape(count, 1, 2, 2)
        (found,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        assert (found == 2 * images).all()


def test_names_are_readable_and_given_once() -> None:
    builder = GraphBuilder()
    names = [builder.add("Relu", [INPUT_NAME], "layer1.0.conv/1") for _ in range(3)]
    assert names == ["layer1.0.conv_1", "layer1.0.conv_1_1", "layer1.0.conv_1_2"]
    # A network may call its own parts what the graph calls its ends.
    ends = [builder.add("Relu", [INPUT_NAME], name) for name in (INPUT_NAME, OUTPUT_NAME)]
    assert not {INPUT_NAME, OUTPUT_NAME} & set(ends)
    several = builder.add_many("Split", [INPUT_NAME], 2, "pieces", num_outputs=2)
    assert len({*names, *ends, *several}) == 7


def test_equal_small_constants_are_one_whatever_they_were_to_be_called() -> None:
    builder = GraphBuilder()
    zero = builder.constant(np.uint8(0), "zero_point")
    assert builder.constant(np.uint8(0), "other") == zero
    others = [np.int8(0), np.zeros(1, np.uint8), np.float32(0), np.float32(-0.0), np.bool_(False)]
    assert len({zero, *(builder.constant(value) for value in others)}) == 6
    large = np.zeros(1000, np.float32)
    assert builder.constant(large, "weight") != builder.constant(large, "weight")


def test_constants_are_read_again() -> None:
    builder = GraphBuilder()
    # Of another order in memory.
    weight = np.arange(6, dtype=np.int16).reshape(2, 3).T
    name = builder.constant(weight, "conv.weight")
    assert builder.is_constant(name)
    assert not builder.is_constant(INPUT_NAME)
    assert (builder.value(name) == weight).all()
    weight[0, 0] = 7
    assert builder.value(name)[0, 0] == 0
    with pytest.raises(KeyError):
        builder.value(INPUT_NAME)


def test_a_constant_that_nobody_reads_is_not_written() -> None:
    builder = GraphBuilder()
    builder.constant(np.zeros(100), "unread")
    assert [held.name for held in build_doubling(builder).graph.initializer] == ["constant"]


def test_types_that_runtimes_do_not_compute_with_are_refused() -> None:
    builder = GraphBuilder()
    for name in ("INT4", "UINT4", "UINT2"):
        kind = onnx.TensorProto.DataType.Value(name)
        with pytest.raises(TypeError):
            builder.add("Cast", [INPUT_NAME], to=kind)
        with pytest.raises(TypeError):
            builder.constant(np.zeros(2, onnx.helper.tensor_dtype_to_np_dtype(kind)))


def test_a_graph_that_is_no_valid_one_is_not_built() -> None:
    builder = GraphBuilder()
    builder.expose(builder.add("Relu", ["nobody"]))
    info = [(INPUT_NAME, FLOAT, ("batch",))], [(OUTPUT_NAME, FLOAT, ("batch",))]
    with pytest.raises(OmpqError, match="no valid form in ONNX"):
        builder.build("broken", *info, {})
