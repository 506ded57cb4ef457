"""Fine-tuning to a network of integers (HAWQ-V3), evaluated as integer hardware computes.

prepare             a float network and its bits → a network that trains on integers
ConversionSettings  how it is rewritten: ranges, biases, rescaling, learned steps
fine_tune           train it; the best state stays
TrainingSettings    epochs, learning rate, distillation
verify              run its integers alone, and compare every logit with the evaluation
"""

from typing import TYPE_CHECKING

from ompq._face import attach

if TYPE_CHECKING:
    from ompq.integer import ConversionSettings
    from ompq.verification import Verification, verify
    from QAT.initialise import prepare
    from QAT.settings import TrainingSettings
    from QAT.training import fine_tune

__all__ = [
    "ConversionSettings",
    "TrainingSettings",
    "Verification",
    "fine_tune",
    "prepare",
    "verify",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "QAT.initialise": "prepare",
        "QAT.settings": "TrainingSettings",
        "QAT.training": "fine_tune",
        "ompq.integer": "ConversionSettings",
        "ompq.verification": "Verification verify",
    },
)
