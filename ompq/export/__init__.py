"""Files that run a quantized network elsewhere, each proven to compute the same.

export_network   an artifact → model.ompq.safetensors, model.onnx, web/ …, and what they weigh
verify_file      such a file and the test images beside it, run here again
TestImages       images with their logits, by which a device proves what it computes

    targets.py       what is written for every target
    runtimes.py      how every file is run: ONNX Runtime, a C compiler, this toolkit
    checks.py        a file beside the network of integers: logits, seconds, bytes
    places.py        what was written put into its place
    arrangements.py  operations that only move values
    c/, onnx/, web/  the writers
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from ompq.export.checks import Exported, verify_file
    from ompq.export.exporting import export_network
    from ompq.export.targets import TARGETS
    from ompq.export.test_images import TestImages

__all__ = ["TARGETS", "Exported", "TestImages", "export_network", "verify_file"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ompq.export.checks": "Exported verify_file",
        "ompq.export.exporting": "export_network",
        "ompq.export.targets": "TARGETS",
        "ompq.export.test_images": "TestImages",
    },
)
