"""`tailorbird top`: a running service at a glance."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from tailorbird.engine.errors import CallerError, Unavailable
from tailorbird.server.scraped import Reading, checked_url, read
from tailorbird.server.top import frame, printable

DEFAULT = "127.0.0.1:9464"
INTERVAL_S_MIN, INTERVAL_S_MAX = 0.1, 3_600.0
LOOK_S = 0.1  # how soon a key or another size of the screen is noticed
FIRST_S = 0.2  # over so long is the first frame, for not to have nothing to show
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, TO_END_OF_LINE, TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
PIPED_LINES_MAX = 1_000
KEYS_MAX = 64  # read at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        nargs="?",
        default=DEFAULT,
        metavar="HOST:PORT",
        help=f"where `serve --metrics` answers; default {DEFAULT}",
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between frames; default 1")
    parser.add_argument(
        "--once", action="store_true", help="print one frame, over one interval, and end; so does a pipe"
    )


def run(arguments: argparse.Namespace) -> int:
    url, interval_s = checked_url(arguments.address), arguments.interval
    if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        raise CallerError(
            "BAD_ARGUMENT",
            f"expected {INTERVAL_S_MIN} to {INTERVAL_S_MAX:.0f} seconds, got {interval_s} in --interval",
        )
    before = read(url)
    if arguments.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        time.sleep(interval_s)
        lines = frame(
            before,
            read(url),
            url,
            width=shutil.get_terminal_size((120, 24)).columns,
            height=PIPED_LINES_MAX,
            is_painted=False,
        )
        print("\n".join(lines))
        return 0
    with _screen() as draw:
        _watch(url, before, interval_s, draw)
    return 0


def _watch(url: str, before: Reading, interval_s: float, draw: Callable[[list[str]], None]) -> None:
    """Draw until a `q`; a service that no longer answers is waited for, its last figures left standing."""
    after, trouble = before, ""
    due_s = time.monotonic() + min(FIRST_S, interval_s)
    size = None
    while True:
        if time.monotonic() >= due_s:
            try:
                found = read(url)
                before, after, trouble = after, found, ""
            except Unavailable as error:
                trouble = printable(f"no answer since {time.monotonic() - after.moment_s:.0f} s: {error.message}")
            due_s, size = time.monotonic() + interval_s, None
        now = shutil.get_terminal_size()
        if now != size:
            size = now
            room = now.lines - bool(trouble)
            lines = frame(before, after, url, width=now.columns, height=room, is_painted=True)
            draw([trouble[: now.columns], *lines] if trouble else lines)
        ready, _, _ = select.select([sys.stdin], [], [], min(LOOK_S, max(0.0, due_s - time.monotonic())))
        if ready and ((keys := os.read(sys.stdin.fileno(), KEYS_MAX)) == b"" or b"q" in keys.lower()):
            return


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[list[str]], None]]:
    """Give what draws on a screen of its own, keys read at once; put everything back."""

    def ended(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    def draw(lines: list[str]) -> None:
        sys.stdout.write(HOME + "\n".join(line + TO_END_OF_LINE for line in lines) + TO_END)
        sys.stdout.flush()

    former, handler = termios.tcgetattr(sys.stdin), signal.signal(signal.SIGTERM, ended)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(ENTER)
        yield draw
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, former)
        signal.signal(signal.SIGTERM, handler)
