"""Data sets by name, behind one interface.

datasets/       how each data set is opened: `registry` lists them; `folders`, `digits`,
                `fashion_mnist` and `cifar10` open them as `splits`; `download` fetches them;
                `classes` numbers their classes
decoding/       image files to pixels: `backends` chooses `pillow` or `dali`, both cut the `views`
                of an image and return `decoded` files; `depths` brings their values to 8 bits
preprocessing   what images go through for a network: its author's word, the data's, the user's
sampling        which images, in which order, on which rank
pixels          pixels to batches, shifted and flipped, normalised
batching        a stream of images cut into batches
loader          batches of a split
calibration     a handful of training images
calibration_file                images that a user saved
"""

from ompq.data.batching import collect_images, iterate_images, iterate_pairs
from ompq.data.calibration import CalibrationImages, calibration_batches, calibration_images
from ompq.data.calibration_file import load_calibration_file
from ompq.data.datasets.registry import DATASETS, DatasetInfo, preprocess_for
from ompq.data.decoding.backends import BACKENDS
from ompq.data.loader import Loader, make_loader, unreadable_note
from ompq.data.preprocessing import ImageWishes, choose_preprocess, find_input_shape

__all__ = [
    "BACKENDS",
    "DATASETS",
    "CalibrationImages",
    "DatasetInfo",
    "ImageWishes",
    "Loader",
    "calibration_batches",
    "calibration_images",
    "choose_preprocess",
    "collect_images",
    "find_input_shape",
    "iterate_images",
    "iterate_pairs",
    "load_calibration_file",
    "make_loader",
    "preprocess_for",
    "unreadable_note",
]
