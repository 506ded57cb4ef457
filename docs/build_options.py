"""Write docs/options.md from the parsers of the scripts, so that it says what they take."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # started by its path: see the repository, not this folder, first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mixed_bit import options as bits
from ompq.debug.options import build_parser as build_debug_parser
from ompq.export.options import build_parser as build_export_parser
from ompq.files import write_text
from ompq.options import Parser
from PTQ.options import build_parser as build_ptq_parser
from QAT.options import build_parser as build_qat_parser
from recipes.options import build_parser as build_run_parser

PAGE = Path(__file__).resolve().parent / "options.md"
INTRODUCTION = """# Options

Every option of every script, written from the scripts' own parsers by `make docs`; `--help` tells
it too. Commands in brackets are what `pip install` adds.
"""
# Script → its installed command and its parser.
SCRIPTS = {
    "mixed_bit/feature_extract.py": ("ompq-bits", bits.build_search_parser),
    "mixed_bit/compare.py": ("ompq-compare", bits.build_compare_parser),
    "mixed_bit/model_cost.py": ("ompq-cost", bits.build_cost_parser),
    "mixed_bit/measure_latency.py": ("ompq-latency", bits.build_latency_parser),
    "PTQ/main_imagenet.py": ("ompq-ptq", build_ptq_parser),
    "QAT/quant_train.py": ("ompq-qat", build_qat_parser),
    "ompq/export/__main__.py": ("ompq-export", build_export_parser),
    "ompq/debug/__main__.py": ("ompq-debug", build_debug_parser),
    "recipes/__main__.py": ("ompq-run", build_run_parser),
}


def render_page() -> str:
    """Return the whole page."""
    sections = [
        render_script(script, command, build_parser())
        for script, (command, build_parser) in SCRIPTS.items()
    ]
    return "\n".join([INTRODUCTION, *sections])


def render_script(script: str, command: str, parser: Parser) -> str:
    """Return the section of one script: a table for each group of its options."""
    lines = [f"## {script} (`{command}`)", "", str(parser.description), ""]
    for group in parser._action_groups:
        shown = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        shown = [action for action in shown if action.dest != "help"]
        if not shown:
            continue
        lines += [f"| {group.title} | meaning | default |", "|---|---|---|"]
        lines += [_render_option(action) for action in shown]
        lines.append("")
    return "\n".join(lines)


def _render_option(action: argparse.Action) -> str:
    flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
    needed = " (needed)" if action.required else ""
    cells = [flags + _render_value(action) + needed, action.help or "", _render_default(action)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _render_value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        return " " + "|".join(map(str, action.choices))
    metavar = action.metavar or action.dest.upper()
    return " " + (" ".join(metavar) if isinstance(metavar, tuple) else metavar)


def _render_default(action: argparse.Action) -> str:
    default = action.default
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    says_nothing = default is None or default is False or default in ("", argparse.SUPPRESS)
    return "" if says_nothing or default == [] else str(default)


def main() -> None:
    """Write the page."""
    write_text(PAGE, render_page())
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
