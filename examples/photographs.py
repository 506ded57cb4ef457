"""An ImageNet-like folder from the photographs that Python packages ship, for want of ImageNet.

`val/` gets foolbox's 20 labelled ImageNet photographs, `train/` random crops of the photographs of
scikit-learn and scikit-image, which are none of those 20.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import shutil
from importlib.util import find_spec

import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from ompq.errors import OmpqError
from ompq.files import atomic_path
from ompq.options import Parser
from ompq.runtime import progress
from ompq.script import run_script

CLASSES = 1000
SOURCES = {
    "sklearn": ("datasets/images", "*.jpg"),
    "skimage": ("data", "astronaut.png|chelsea.png|coffee.png|motorcycle_left.png|rocket.jpg"),
}


def find_folder(package: str, inside: str) -> Path:
    """Find a folder within an installed package.

    Args:
        package: Name of the package, as it is imported.
        inside: Path of the folder within the package.

    Raises:
        OmpqError: The package is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        name = {"skimage": "scikit-image", "sklearn": "scikit-learn"}.get(package, package)
        raise OmpqError(f"the package {name} is not installed; pip install {name}")
    return Path(spec.origin).parent / inside


def write_crops(photographs: list[Path], count: int, side: int, folder: Path) -> None:
    """Write random crops, in turn from every photograph.

    Args:
        photographs: Paths of the photographs.
        count: Number of crops.
        side: Height and width of a crop, in pixels.
        folder: Folder to write them to, which exists.
    """
    torch.manual_seed(0)
    crop = RandomResizedCrop(side, scale=(0.1, 1.0), antialias=True)
    for number in progress(range(count), "crops", count):
        source, target = photographs[number % len(photographs)], folder / f"{number:04d}.jpg"
        with Image.open(source) as image, atomic_path(target) as temporary:
            crop(image.convert("RGB")).save(temporary, quality=95)


def build_parser() -> Parser:
    """Build the parser of all options of the script."""
    parser = Parser(prog="photographs.py", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("photographs"), help="where to")
    parser.add_argument("--count", type=int, default=256, help="crops")
    parser.add_argument("--side", type=int, default=256, help="their height and width")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Write `train/CLASS/` and `val/CLASS/`, classes by their ImageNet numbers.

    Args:
        arguments: Command line of `build_parser`.
    """
    labelled = sorted(find_folder("foolbox", "data").glob("imagenet_*.jpg"))
    photographs = [
        file
        for package, (inside, names) in SOURCES.items()
        for name in names.split("|")
        for file in sorted(find_folder(package, inside).glob(name))
    ]
    for number in range(CLASSES):
        (arguments.folder / "train" / f"{number:04d}").mkdir(parents=True, exist_ok=True)
    write_crops(photographs, arguments.count, arguments.side, arguments.folder / "train" / "0000")
    for file in labelled:
        target = arguments.folder / "val" / f"{int(file.stem.split('_')[2]):04d}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    print(
        f"{arguments.folder}: {arguments.count} crops of {len(photographs)} photographs to "
        f"calibrate with, {len(labelled)} labelled ones to evaluate on"
    )


if __name__ == "__main__":
    run_script(build_parser, run)
