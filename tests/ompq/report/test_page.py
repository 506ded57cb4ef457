"""The report: its figures are those of the files, and it needs nothing but itself."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import BROWSER, Page, start_browser
from reported import CONFIG, FILES, GROUPS, HISTORY, RESULTS, fill

from ompq.errors import OmpqError
from ompq.report import add_report, read_folder, write_report
from ompq.report.__main__ import build_parser, run


class _Reader(HTMLParser):
    """Collects the exact values of a page, tips, and every address that it names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.values: list[float] = []
        self.keyed: dict[str, float] = {}
        self.tips: list[str] = []
        self.bits: list[int] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("data-value"):
            self.values.append(float(given["data-value"] or ""))
        if given.get("data-key"):
            self.keyed[given["data-key"] or ""] = self.values[-1]
        if given.get("data-tip"):
            self.tips.append(given["data-tip"] or "")
        if given.get("data-bits"):
            self.bits.append(int(given["data-bits"] or ""))
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href")]


def read_page(*folders: Path) -> tuple[str, _Reader]:
    page = write_report(folders).read_text(encoding="utf-8")
    return page, _Reader(page)


def test_figures_are_those_of_the_files(tmp_path: Path) -> None:
    page, found = read_page(fill(tmp_path))
    for key in ("top1_fp32", "top1", "agreement", "model_size_mb", "float_size_mb", "bops_g"):
        assert found.keyed[key] == RESULTS[key]
    error = 100 * math.sqrt(0.9125 * 0.0875 / 400)
    assert f'91.25 %</span><small title="standard error of 400 images"> ± {error:.2f}' in page
    assert found.bits == [8, 3, 2]
    assert "9 of 400 images" in page and "2 of them for the better, 4 for the worse" in page
    assert "2\u202f400 of 2\u202f450" in page or "quantized parameters" not in page
    for value in (0.5, 0.125, 0.0625, 0.75, 30.5, 10.25, 0.4375, 0.875):
        assert value in found.values


def test_sizes_at_uniform_widths_keep_what_is_pinned_and_in_float(tmp_path: Path) -> None:
    uniform = read_folder(fill(tmp_path, "bit_config.json")).uniform_mb()
    assert uniform[4] == pytest.approx((100 * 8 + 2300 * 4 + 32 * 50) / 8 / 2**20)
    assert list(uniform) == list(range(2, 9))


def test_a_bar_tells_all_that_is_known_of_its_layer(tmp_path: Path) -> None:
    _, found = read_page(fill(tmp_path))
    (tip,) = (tip for tip in found.tips if tip.startswith("body.a, "))
    assert tip.splitlines() == [
        "body.a, body.<b>",
        "shape 8×4×3×3",
        "shape 8×4×1×1",
        "3 bits, reads 8",
        "2000 parameters",
        "90000 operations",
        "costs 0.5 at 2 bits",
        "costs 0.25 at 3 bits",
        "costs 0.125 at 4 bits",
        "loss of body: 0.5 → 0.125",
    ]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_one_file_has_a_page(name: str, tmp_path: Path) -> None:
    if name == "changes.json":
        pytest.skip("it stands beside results")
    page, _ = read_page(fill(tmp_path, name))
    assert "<h1>" in page and page.endswith("</html>\n")


def test_the_page_needs_nothing_else_and_is_small(tmp_path: Path) -> None:
    fill(tmp_path)
    np.save(tmp_path / "orthogonality.npy", np.random.default_rng(0).random((150, 150)))
    page, found = read_page(tmp_path)
    assert all(address.startswith("data:") for address in found.addresses)
    assert not re.search(r"https?://|@import|url\(", page)
    assert len(page.encode()) < 1e6


def test_names_cannot_end_the_script_or_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    fill(tmp_path)
    config = CONFIG | {"model": evil}
    np.save(tmp_path / "orthogonality.npy", np.eye(2))
    groups = [GROUPS[0], *({**g, "layers": [f"{evil}{i}"]} for i, g in enumerate(GROUPS[1:]))]
    (tmp_path / "bit_config.json").write_text(json.dumps(config | {"groups": groups}))
    (tmp_path / "results.json").unlink()
    page, _ = read_page(tmp_path)
    assert "<script>alert" not in page


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "a", "results.json"), fill(tmp_path / "b", "bit_config.json")
    run(build_parser().parse_args([str(first), str(second), "--output", str(tmp_path / "x.html")]))
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert page.count("<details") == 2 and "Side by side" in page
    assert not (first / "report.html").exists()


def test_results_of_earlier_versions_are_shown(tmp_path: Path) -> None:
    fill(tmp_path, "results.json")
    earlier = {k: v for k, v in RESULTS.items() if k not in ("allocation", "tuning")}
    earlier |= {"groups": [["stem"], ["head"]], "bits": [8, 2]}
    (tmp_path / "results.json").write_text(json.dumps(earlier))
    _, found = read_page(tmp_path)
    assert found.bits == [8, 2]


def test_a_run_knows_the_search_that_its_widths_are_of(tmp_path: Path) -> None:
    searched = fill(tmp_path / "search", "bit_config.json")
    folder = fill(tmp_path / "run", "results.json")
    arguments = {"model": "net.py:make", "bit_cfg": str(searched / "bit_config.json")}
    (folder / "results.json").write_text(json.dumps(RESULTS | {"arguments": arguments}))
    groups = read_folder(folder).groups
    assert groups[2].sensitivities == {2: 0.75, 3: 0.0625, 4: 0.03125}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": "ompq-bit-config/99"}', "ompq-bit-config/99"),
    ],
)
def test_damaged_and_newer_files_are_refused(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "bit_config.json").write_text(content)
    with pytest.raises(OmpqError, match=told):
        write_report([tmp_path])
    assert not (tmp_path / "report.html").exists()


def test_what_others_left_damaged_costs_the_page_alone(tmp_path: Path) -> None:
    told: list[str] = []
    assert add_report(fill(tmp_path, "results.json"), told.append) == ["report.html"]
    (tmp_path / "bit_config.json").write_text("{")
    assert add_report(tmp_path, told.append) == []
    (note,) = told
    assert "there is no report.html" in note and "bit_config.json" in note


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="holds no result"):
        write_report([tmp_path])
    with pytest.raises(OmpqError, match="is no folder"):
        write_report([tmp_path / "nowhere"])
    with pytest.raises(OmpqError, match="no folder to report on"):
        write_report([])


@pytest.fixture(scope="module")
def browser() -> Any:
    if BROWSER is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with start_browser() as page:
        yield page


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_renders(browser: Page, width: int, dark: bool, tmp_path: Path) -> None:
    fill(tmp_path)
    np.save(tmp_path / "orthogonality.npy", np.array([[1.0, 0.25], [0.25, 1.0]]))
    page = write_report([tmp_path])
    browser.problems.clear()
    browser.open(page.as_uri(), width, 900, dark)
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate("document.querySelectorAll('section').length") == 10
    lightness = browser.evaluate(
        "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (max(lightness) < 80) == dark
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text, td, dd, h2')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11
    assert not browser.problems


@pytest.mark.slow
def test_points_bars_and_heads_answer(browser: Page, tmp_path: Path) -> None:
    page = write_report([fill(tmp_path)])
    browser.problems.clear()
    browser.open(page.as_uri())
    shown = "[...document.querySelectorAll('.chosen i')].map(bar => Number(bar.textContent))"
    assert browser.evaluate(shown) == [3, 2]
    browser.evaluate(
        "document.querySelectorAll('.front circle')[2]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert browser.evaluate(shown) == [4, 3]
    browser.evaluate("document.querySelectorAll('.bar')[1].focus()")
    assert browser.evaluate("document.querySelector('.tip').textContent").startswith("body.a")
    cells = (
        "[...[...document.querySelectorAll('section')].find(s => s.querySelector('h2').textContent"
        " === 'Layers').querySelectorAll('tbody tr')].map(row => row.cells[2].textContent)"
    )
    assert browser.evaluate(cells) == ["100", "2000", "300"]
    head = (
        "[...document.querySelectorAll('th')].find(th => th.textContent === 'parameters')"
        ".querySelector('button').click()"
    )
    browser.evaluate(head)
    assert browser.evaluate(cells) == ["100", "300", "2000"]
    browser.evaluate(head)
    assert browser.evaluate(cells) == ["2000", "300", "100"]
    assert not browser.problems


@pytest.mark.slow
def test_curves_of_fine_tuning_are_drawn(browser: Page, tmp_path: Path) -> None:
    results = {key: value for key, value in RESULTS.items() if key not in ("blocks", "tuning")}
    results |= {"format": "ompq-qat-results/1", "history": HISTORY}
    (tmp_path / "results.json").write_text(json.dumps(results))
    browser.problems.clear()
    browser.open(write_report([tmp_path]).as_uri())
    tips = browser.evaluate("[...document.querySelectorAll('circle')].map(c => c.dataset.tip)")
    assert {"step 0: 12.5", "step 24: 87.5", "step 24: 0.625"} <= set(tips)
    assert not browser.problems
