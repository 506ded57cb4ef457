"""Data sets by name, behind one interface.

registry        the data sets, and what is known of each
folders, digits, fashion_mnist, cifar10, download      how each is opened
sampling        which images, in which order, on which rank
decoding        files to pixels, by `pillow` or `dali`, both looking through `views`
pixels          pixels to batches, shifted and flipped, normalised
loader          batches of a split
calibration, calibration_file                          a handful of images
"""

from ompq.data.calibration import CalibrationImages, calibration_batches, calibration_images
from ompq.data.calibration_file import load_calibration_file
from ompq.data.decoding import BACKENDS
from ompq.data.loader import Loader, make_loader, unreadable_note
from ompq.data.registry import DATASETS, DatasetInfo, preprocess_for

__all__ = [
    "BACKENDS",
    "DATASETS",
    "CalibrationImages",
    "DatasetInfo",
    "Loader",
    "calibration_batches",
    "calibration_images",
    "load_calibration_file",
    "make_loader",
    "preprocess_for",
    "unreadable_note",
]
