"""Data sets by name, behind one interface."""

from ompq.data.calibration import calibration_batches, load_calibration_file
from ompq.data.loader import Loader, make_loader, preprocess_for
from ompq.data.splits import DATASETS

__all__ = [
    "DATASETS",
    "Loader",
    "calibration_batches",
    "load_calibration_file",
    "make_loader",
    "preprocess_for",
]
