"""How a script begins and ends: one line for a user's mistake, and for Ctrl-C at any moment.

Imports nothing but the standard library, so that a script can be interrupted while it imports.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, NoReturn

from ompq.errors import OmpqError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from ompq.options import Parser

# A disk, a quota or a limit that leaves no room to write.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INTERRUPTED = 130
# Parameters of glibc's mallopt: how much free memory is given back, how much is mapped apart.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TUNING_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
_STORE_TIMEOUT = timedelta(seconds=5)


@contextmanager
def interruptible_imports() -> Iterator[None]:
    """End the process as Ctrl-C does later on, if it comes while the body imports."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, _frame: object) -> NoReturn:
        # Nothing is raised: some libraries swallow that while they are imported, others abort.
        _print_interrupted()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)

    # Whoever has a handler of their own, or imports in another thread, keeps what they have.
    ours = before is signal.default_int_handler and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


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
    try:
        _settle_streams()
        keep_freed_memory()
        _parse_and_run(build_parser, run)
    except KeyboardInterrupt:
        _end_interrupted()
    except BrokenPipeError:
        # The reader (`| head`) is gone; without this the interpreter complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        # What is printed may go into a file too. It is not tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end_with(f"cannot write {error.filename or 'what is printed'}: {error.strerror}")


def _parse_and_run(
    build_parser: Callable[[], Parser], run: Callable[[argparse.Namespace], None]
) -> None:
    in_flags: Callable[[str], str] = str
    try:
        parser = build_parser()
        in_flags = parser.in_flags
        run(parser.parse_args())
        sys.stdout.flush()
    except OmpqError as error:
        _end_with(in_flags(str(error)))


def _end_with(text: str) -> NoReturn:
    """End the process with one line that says what was wrong, on one rank of several."""
    text = " ".join(text.split())
    if _is_first_to_print(text):
        print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def _settle_streams() -> None:
    """Let every terminal take what is printed, and of several ranks only the first one print."""
    for stream in (sys.stdout, sys.stderr):
        # Streams that are none of Python's own (of a notebook, a test) take any text.
        with suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if not is_main_process():
        warnings.simplefilter("ignore")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)


def keep_freed_memory() -> None:
    """Let glibc's allocator keep the memory that large tensors free, for the next ones.

    It maps whatever is larger than 32 MiB anew every time, and the kernel fills every page with
    zeros: up to three quarters of a training step on images of 224 × 224. The process keeps its
    largest size by it. Another allocator, or one that a user tunes by its environment variables,
    is left alone.
    """
    if sys.platform != "linux" or any(name.startswith(_TUNING_VARIABLES) for name in os.environ):
        return
    with suppress(AttributeError, OSError):
        tune = ctypes.CDLL(None).mallopt
        tune(_M_MMAP_MAX, 0)
        tune(_M_TRIM_THRESHOLD, -1)


def is_main_process() -> bool:
    """Tell whether this is the process, of those that torchrun started, that prints."""
    return os.environ.get("RANK", "0") == "0"


def _end_interrupted() -> NoReturn:
    _print_interrupted()
    sys.exit(_INTERRUPTED)


def _print_interrupted() -> None:
    # A second Ctrl-C, while threads are waited for, ends the process without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if is_main_process():
        print("interrupted", file=sys.stderr)


def _is_first_to_print(text: str) -> bool:
    """Ask the ranks' store whether no other rank has printed this line yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    try:
        store = connect_store()
        return store.add(f"{name_in_store('error')}/{zlib.crc32(text.encode())}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # no store to ask: the first rank speaks
        return is_main_process()


def connect_store() -> TCPStore:
    """Connect to the key-value store that torchrun keeps, whatever becomes of its processes.

    Raises:
        KeyError: This process was not started by torchrun.
        ValueError: The environment names no port.
        RuntimeError: There is no store any more.
    """
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=_STORE_TIMEOUT)


def name_in_store(what: str) -> str:
    """Return the name under which this attempt of torchrun keeps something in the store."""
    return f"ompq/{what}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
