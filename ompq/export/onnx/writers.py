"""Every operation in float that has a form in ONNX: its name, and the function that writes it."""

from __future__ import annotations

from ompq.export.onnx import attention, norms, pooling
from ompq.export.onnx.floats import WRITERS as SIMPLE
from ompq.export.onnx.floats import Writer

_BY_NAMES: dict[str, Writer] = {
    "max_pool2d maxpool2d": pooling.write_max_pool,
    "avg_pool2d avgpool2d": pooling.write_average_pool,
    "mean": pooling.write_mean,
    "adaptive_avg_pool2d adaptiveavgpool2d": pooling.write_adaptive_average,
    "adaptive_max_pool2d adaptivemaxpool2d": pooling.write_adaptive_maximum,
    "interpolate upsample upsamplingnearest2d upsamplingbilinear2d": pooling.write_resizing,
    "layer_norm layernorm": norms.write_layer_norm,
    "rms_norm rmsnorm": norms.write_rms_norm,
    "StandaloneBatchNorm batchnorm1d batchnorm2d batchnorm3d": norms.write_batch_norm,
    "batch_norm": norms.write_functional_batch_norm,
    "group_norm groupnorm": norms.write_group_norm,
    "instance_norm instancenorm2d": norms.write_instance_norm,
    "local_response_norm localresponsenorm": norms.write_local_response_norm,
    "scaled_dot_product_attention": attention.write_dot_product_attention,
    "multiheadattention": attention.write_multihead_attention,
}
WRITERS: dict[str, Writer] = SIMPLE | {
    name: writer for names, writer in _BY_NAMES.items() for name in names.split()
}
