"""Real photographs as an image folder: foolbox ships twenty of ImageNet, scikit-learn two."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from ompq.preprocess import Preprocess


def _package_folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Paths of the photographs that are at hand; two at least."""
    found = sorted((_package_folder("sklearn") / "datasets" / "images").glob("*.jpg"))
    foolbox = _package_folder("foolbox")
    if foolbox is not None:
        found += sorted((foolbox / "data").glob("imagenet_*.jpg"))
    return found


@pytest.fixture(scope="session")
def image_folder(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` with twelve images in three classes, `val/` with the first six of them."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 12), ("val", 6)):
        for index in range(count):
            folder = root / split / f"class{index % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            photograph = photographs[index % len(photographs)]
            shutil.copy(photograph, folder / f"{index:02d}.jpg")
    return root


@pytest.fixture
def damaged_folder(image_folder: Path, tmp_path: Path) -> Path:
    """As `image_folder`, with three files in `train/` that are no images any more."""
    root = tmp_path / "damaged"
    shutil.copytree(image_folder, root)
    whole = (root / "train" / "class0" / "00.jpg").read_bytes()
    (root / "train" / "class0" / "01_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "class1" / "02_text.jpg").write_text("this is a text")
    (root / "train" / "class2" / "99_empty.jpg").write_bytes(b"")
    return root


@pytest.fixture
def small() -> Preprocess:
    """An evaluation at 32 pixels, to be quick."""
    return Preprocess(32, 40)
