"""The page in a browser: it computes what the toolkit does, from files to classes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from chromium import BROWSER, Page, serve, start_browser
from exported import (
    DIGITS_PREPROCESS,
    draw_digits,
    make_artifact,
    save_small_network,
    train_on_digits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from ompq.artifact import Artifact
from ompq.data.decoding.pillow import cut, read_image
from ompq.data.decoding.views import compute_evaluation_view
from ompq.data.pixels import normalise
from ompq.errors import OmpqError
from ompq.export import TestImages, export_network
from ompq.export.__main__ import build_parser, run
from ompq.export.web.onnxruntime_web import fetch_package
from ompq.preprocess import Preprocess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium; apt-get install chromium"),
]

NAMES = "zero one two three four five six seven eight nine".split()
DONE = "['passed', 'failed'].includes(document.getElementById('verify').dataset.state)"


@dataclass
class Exported:
    """A network of digits with its page."""

    read: Artifact
    folder: Path

    def compute(self, pixels: Tensor) -> Tensor:
        """Probabilities of 8-bit pixels, n × 1 × 8 × 8."""
        with torch.inference_mode():
            return self.read.network.module(normalise(pixels, self.read.preprocess)).softmax(1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("onnxruntime")
    try:
        fetch_package()
    except OmpqError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("digits")
    pixels, _ = draw_digits()
    images = normalise(pixels[:256], DIGITS_PREPROCESS)
    read = make_artifact(train_on_digits(), images, folder, 6, DIGITS_PREPROCESS, NAMES)
    export_network(read, ["web"], folder, normalise(pixels[-64:], DIGITS_PREPROCESS))
    return Exported(read, folder / "web")


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with start_browser() as page:
        yield page


@pytest.fixture(scope="module")
def address(exported: Exported) -> Iterator[str]:
    with serve(exported.folder) as address:
        yield address


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """The page, loaded and verified; nothing may go wrong in it, or be asked of others."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(address)
    browser.wait_for(DONE)
    yield browser
    assert not browser.problems
    assert all(url.startswith((address, "data:", "blob:")) for url in browser.requests)


def read_text(page: Page, selector: str) -> str:
    return page.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def read_classes(page: Page) -> dict[str, float]:
    """Names of the classes that are shown, and their probabilities."""
    rows = page.evaluate(
        "[...document.querySelectorAll('#classes li')].map(row => "
        "[...row.querySelectorAll('.label span')].map(span => span.innerText))"
    )
    return {name: float(percent.removesuffix(" %")) / 100 for name, percent in rows}


def read_preview(page: Page, channels: int = 1) -> np.ndarray:
    """The pixels that the network sees."""
    height, width, values = page.evaluate(
        "(() => { const {width, height} = preview, copy = new OffscreenCanvas(width, height);"
        "const context = copy.getContext('2d', {willReadFrequently: true});"
        "context.drawImage(preview, 0, 0);"
        "return [height, width, [...context.getImageData(0, 0, width, height).data]]; })()"
    )
    return np.array(values, np.uint8).reshape(height, width, 4)[..., :channels]


def expect_classes(page: Page, probabilities: Tensor) -> None:
    shown = read_classes(page)
    assert len(shown) == 5
    largest = probabilities.topk(5)
    assert next(iter(shown)) == NAMES[int(largest.indices[0])]
    for value, index in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
        if value > 0.01:
            assert shown[NAMES[index]] == pytest.approx(value, abs=0.002)


def choose(page: Page, file: Path) -> None:
    """Choose a file and wait for its classes."""
    page.evaluate("document.getElementById('classes').replaceChildren(); problem.hidden = true")
    page.choose_file("#file", file)
    page.wait_for("document.querySelector('#classes li') || !problem.hidden")


def test_the_page_verifies_what_was_exported(page: Page) -> None:
    found = page.evaluate("({...document.getElementById('verify').dataset})")
    assert (found["state"], found["agreeing"]) == ("passed", "8")
    assert float(found["difference"]) < 0.1
    assert "8 of 8 test images" in read_text(page, "#verify")
    assert not page.evaluate("document.getElementById('server').checkVisibility()")


def test_the_page_tells_the_network_and_its_size(page: Page, exported: Exported) -> None:
    size = (exported.folder / "model.onnx").stat().st_size
    assert read_text(page, "h1") == "Sequential" and "6" in page.evaluate("document.title")
    assert "Weights in 6 to 8 bits" in read_text(page, "#summary")
    assert f"{size:,} bytes" in read_text(page, "#facts")
    assert f"{size / 1024:.1f}" in read_text(page, "#timing") and "ms" in read_text(page, "#timing")
    bits = page.evaluate("[...document.querySelectorAll('#bits span')].map(s => s.innerText)")
    assert bits == ["8", "6", "8"]
    assert "onnxruntime-web" in read_text(page, "footer")


def test_test_images_give_their_classes(page: Page, exported: Exported) -> None:
    tests = TestImages.load(exported.folder / "model.test.safetensors")
    assert tests.logits is not None
    for index in (0, 5, 7):
        page.evaluate("document.getElementById('classes').replaceChildren()")
        page.evaluate(f"document.querySelectorAll('#tests button')[{index}].click()")
        page.wait_for("document.querySelector('#classes li')")
        expect_classes(page, tests.logits[index].softmax(0))
        pixels = tests.pixels[index].permute(1, 2, 0).numpy()
        assert np.array_equal(read_preview(page), pixels)
        assert page.evaluate("document.querySelectorAll('[aria-pressed=true]').length") == 1


def test_images_that_are_chosen_give_the_classes_of_the_toolkit(
    page: Page, exported: Exported, tmp_path: Path
) -> None:
    pixels, labels = draw_digits()
    right = 0
    for index in range(-12, 0):
        file = tmp_path / f"{index}.png"
        Image.fromarray(pixels[index, 0].numpy()).save(file)
        choose(page, file)
        assert np.array_equal(read_preview(page)[..., 0], pixels[index, 0].numpy())
        expect_classes(page, exported.compute(pixels[index][None])[0])
        right += next(iter(read_classes(page))) == NAMES[int(labels[index])]
    assert right >= 9


def test_a_photograph_is_seen_as_the_toolkit_sees_it(
    page: Page, exported: Exported, tmp_path: Path
) -> None:
    file = tmp_path / "flower.png"
    Image.fromarray(load_sample_image("flower.jpg")).save(file)
    seen = look(file, exported.read.preprocess)
    choose(page, file)
    # Pillow may take columns first, and rounds in between.
    found = torch.tensor(read_preview(page)).permute(2, 0, 1)
    assert (found.int() - seen.int()).abs().max() <= 1
    expect_classes(page, exported.compute(found[None])[0])


def test_an_image_may_be_dropped_anywhere(page: Page, exported: Exported) -> None:
    pixels, _ = draw_digits()
    content = io.BytesIO()
    Image.fromarray(pixels[30, 0].numpy()).save(content, "PNG")
    page.evaluate("document.getElementById('classes').replaceChildren()")
    page.evaluate(
        f"(() => {{ const bytes = new Uint8Array({list(content.getvalue())}); "
        "const held = new DataTransfer(); "
        "held.items.add(new File([bytes], 'digit.png', {type: 'image/png'})); "
        "document.querySelector('footer').dispatchEvent("
        "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: held})); })()"
    )
    page.wait_for("document.querySelector('#classes li')")
    expect_classes(page, exported.compute(pixels[30][None])[0])


def test_what_is_no_image_is_said_and_the_next_image_clears_it(page: Page, tmp_path: Path) -> None:
    file, image = tmp_path / "letter.png", tmp_path / "image.png"
    file.write_text("Dear all,")
    Image.new("L", (9, 9)).save(image)
    choose(page, file)
    assert "letter.png is no image" in read_text(page, "#problem")
    choose(page, image)
    assert page.evaluate("problem.hidden") and len(read_classes(page)) == 5


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_nothing_is_wider_than_the_window(width: int, dark: bool, page: Page, address: str) -> None:
    page.open(address, width, 800, dark)
    page.wait_for(DONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    lightness = sum(map(int, ground.removeprefix("rgb(").removesuffix(")").split(",")))
    assert lightness < 200 if dark else lightness > 600


def look(file: Path, preprocess: Preprocess) -> Tensor:
    """What the toolkit's evaluation sees of an image file, uint8."""
    image = read_image(file, preprocess.channels)
    assert image is not None
    return cut(image, compute_evaluation_view(image.height, image.width, preprocess), preprocess)


def look_rows_first(file: BinaryIO, preprocess: Preprocess) -> Tensor:
    """What evaluation sees of an image file where Pillow has to resample rows before columns."""
    image = read_image(file, preprocess.channels)
    assert image is not None
    view = compute_evaluation_view(image.height, image.width, preprocess)
    if image.mode == "RGBA":
        image = image.convert("RGBa")
    resampling = Image.Resampling[preprocess.interpolation.upper()]
    image = image.resize((view.resized[1], image.height), resampling)
    image = image.resize(view.resized[::-1], resampling)
    if image.mode == "RGBa":
        image = image.convert("RGBA")
    (top, left), size = view.corner, preprocess.input_size
    pixels = np.atleast_3d(np.asarray(image))[top : top + size, left : left + size]
    return torch.tensor(pixels).permute(2, 0, 1)


def describe(preprocess: Preprocess) -> str:
    shape = [preprocess.channels, preprocess.input_size, preprocess.input_size]
    settings = {"resize": preprocess.resize, "interpolation": preprocess.interpolation}
    settings |= {"mean": preprocess.mean, "std": preprocess.std}
    return json.dumps({"input_shape": shape, "preprocess": settings})


@settings(max_examples=60)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    size=st.integers(1, 24),
    margin=st.integers(0, 9),
    channels=st.sampled_from([1, 3, 4]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 99),
)
def test_images_are_resampled_as_by_pillow_to_the_bit(
    width: int,
    height: int,
    size: int,
    margin: int,
    channels: int,
    interpolation: str,
    seed: int,
    browser: Page,
    address: str,
) -> None:
    if not browser.evaluate("location.href").startswith(address):
        browser.open(address)
    preprocess = Preprocess(
        size, size + margin, (0.3, 0.4, 0.5, 0.6)[:channels], (0.2,) * channels, interpolation
    )
    # Values at both ends let bicubic interpolation overshoot.
    pixels = np.random.default_rng(seed).choice([0, 40, 130, 255], (height, width, 4))
    if channels != 4:
        pixels[..., 3] = 255
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), "RGBA").save(content, "PNG")
    expected = look_rows_first(content, preprocess)
    found, bits = browser.evaluate(
        "import('./preprocess.js').then(({fitPixels, normalise}) => {"
        f"const network = {describe(preprocess)};"
        f"const data = Uint8ClampedArray.from({pixels.flatten().tolist()});"
        f"const pixels = fitPixels({{width: {width}, height: {height}, data}}, network);"
        "const values = normalise(pixels, network);"
        "return [[...pixels], [...new Int32Array(values.buffer)]]; })"
    )
    assert found == expected.permute(1, 2, 0).flatten().tolist()
    values = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert torch.equal(values, normalise(expected[None], preprocess).flatten())


def test_test_images_are_read_to_the_bit(page: Page, exported: Exported) -> None:
    tests = TestImages.load(exported.folder / "model.test.safetensors")
    bits, logits = page.evaluate(
        "Promise.all([import('./test_images.js'), fetch('model.test.safetensors')"
        ".then(answer => answer.arrayBuffer())]).then(([{readTestImages}, bytes]) => {"
        "const images = readTestImages(bytes);"
        "return [images.flatMap(({values}) => [...new Int32Array(values.buffer)]), "
        "images.flatMap(({expected}) => [...expected])]; })"
    )
    values = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert torch.equal(values, tests.images.flatten())
    assert tests.computed is not None
    assert torch.equal(torch.tensor(logits), tests.computed.flatten())


def open_changed(browser: Page, folder: Path) -> tuple[str, str]:
    """State and text of the verification of a page that something is wrong with."""
    with serve(folder) as address:
        browser.open(address)
        browser.wait_for(DONE)
        state = browser.evaluate("document.getElementById('verify').dataset.state")
        return state, read_text(browser, "#verify")


def test_a_model_that_computes_something_else_is_found(
    browser: Page, exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "web"
    shutil.copytree(exported.folder, folder)
    file = folder / "model.test.safetensors"
    tests = TestImages.load(file)
    assert tests.computed is not None
    changed = tests.computed.clone()
    changed[:3] = -changed[:3]
    replace(tests, computed=changed).save(file)
    state, text = open_changed(browser, folder)
    assert state == "failed" and "5 of 8" in text


@pytest.mark.parametrize("name", ["model.onnx", "network.json", "ort-wasm-simd-threaded.wasm"])
def test_a_file_that_is_missing_is_said(
    name: str, browser: Page, exported: Exported, tmp_path: Path
) -> None:
    folder = tmp_path / "web"
    shutil.copytree(exported.folder, folder)
    (folder / name).unlink()
    state, text = open_changed(browser, folder)
    assert state == "failed" and "cannot be loaded" in text


def test_without_a_server_the_page_says_what_to_do(browser: Page, exported: Exported) -> None:
    browser.open((exported.folder / "index.html").as_uri())
    browser.wait_for("getComputedStyle(document.getElementById('server')).visibility == 'visible'")
    assert "python -m http.server" in read_text(browser, "#server")


def test_the_command_ends_by_telling_how_to_open_it(
    exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Page
) -> None:
    """A network of the zoo, from the command line to the browser."""
    source = save_small_network(tmp_path / "result")
    out = tmp_path / "out of it"
    run(build_parser().parse_args([str(source), "--to", "web", "--output_dir", str(out)]))
    table, last = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert "web/model.onnx" in table
    assert last == f"to open it: python -m http.server -d '{out}/web', then http://localhost:8000"
    state, text = open_changed(browser, out / "web")
    assert state == "passed" and "8 of 8" in text
