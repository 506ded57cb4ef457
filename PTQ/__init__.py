"""Post-training quantization by block reconstruction (BRECQ, AdaRound, LSQ), without labels.

quantize_network    a network, its bits and some images → the quantized network
round_to_nearest    where that begins: weights rounded, nothing learned
Settings            steps, losses, what is quantized
BlockReport         how one block was learned
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from PTQ.block_result import BlockReport
    from PTQ.quantize import quantize_network, round_to_nearest
    from PTQ.settings import Settings

__all__ = ["BlockReport", "Settings", "quantize_network", "round_to_nearest"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "PTQ.block_result": "BlockReport",
        "PTQ.quantize": "quantize_network round_to_nearest",
        "PTQ.settings": "Settings",
    },
)
