"""Where a quantized network loses what the float network computes.

compare_layers   float network, quantized network, images → one LayerComparison per layer
LayerComparison  signal-to-noise ratios of a layer, what is clipped, what vanished, what helps

    noise.py       signal and noise, added up over batches
    comparison.py  the layers of both networks side by side
    report.py      the table, the file and the picture
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from ompq.debug.comparison import LayerComparison, compare_layers

__all__ = ["LayerComparison", "compare_layers"]

__getattr__, __dir__ = attach(__name__, {"ompq.debug.comparison": "LayerComparison compare_layers"})
