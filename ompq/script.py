"""How a script begins and ends: one line for a user's mistake, and for Ctrl-C at any moment.

Imports nothing but the standard library, so that a script can be interrupted while it imports.
"""

from __future__ import annotations

import argparse
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from ompq.errors import OmpqError

if TYPE_CHECKING:
    from ompq.options import Parser


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """End the process as Ctrl-C does later on, if it comes while the body imports."""
    try:
        yield
    except KeyboardInterrupt:
        _end_interrupted()


def run_script(
    build_parser: Callable[[], Parser], run: Callable[[argparse.Namespace], None]
) -> None:
    """Parse the command line, run a script, and end the process as users expect.

    Exit status 0 on success, 2 with one `error: …` line for what a user can put right, 130 after
    Ctrl-C. Anything else is a defect of ours and keeps its traceback. Of several ranks with the
    same error, one prints it.

    Args:
        build_parser: Gives the parser of the script's options.
        run: Does the work, given the parsed arguments.
    """
    in_flags: Callable[[str], str] = str
    try:
        parser = build_parser()
        in_flags = parser.in_flags
        run(parser.parse_args())
    except OmpqError as error:
        text = " ".join(in_flags(str(error)).split())
        if _is_first_to_print(text):
            print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        _end_interrupted()
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this the interpreter complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _end_interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    sys.exit(130)


def _is_first_to_print(text: str) -> bool:
    """Ask torchrun's own key-value store whether no other rank has printed this line yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"ompq/error/{attempt}/{zlib.crc32(text.encode())}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # no store to ask: the first rank speaks
        return os.environ.get("RANK", "0") == "0"
