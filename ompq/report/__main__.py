"""Write one page of what runs found: `python -m ompq.report`."""

from __future__ import annotations

from ompq.script import interruptible_imports, run_script

with interruptible_imports():
    import argparse

    from ompq.report.options import build_parser
    from ompq.report.page import write_report


def run(arguments: argparse.Namespace) -> None:
    """Write the page and tell where it is.

    Args:
        arguments: Arguments of `build_parser`.

    Raises:
        OmpqError: A folder holds no result, or the page cannot be written.
    """
    page = write_report(arguments.folders, arguments.output)
    print(f"written to {page}: open it in a browser")


def main() -> None:
    """Run the console command."""
    run_script(build_parser, run)


if __name__ == "__main__":
    main()
