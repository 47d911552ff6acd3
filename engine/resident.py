"""Mapped files made resident, so that the first reads of a process are as fast as its later ones."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for it


def make_resident(path: Path, bytes_max: int) -> int:
    """Read in and map up to `bytes_max` bytes, from its beginning, of a file, wherever this process has it mapped; return how many.

    At most half of the machine's memory is filled. Returns 0 where the system cannot do it: then each page is mapped by
    whoever reads it first.
    """
    if not sys.platform.startswith("linux"):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = min(bytes_max, memory // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    mappings = _mappings(path)
    wanted = min([wanted, *(length for _, length in mappings)])
    if not mappings or not wanted:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    for start, _ in mappings:
        if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(wanted), MADV_POPULATE_READ):
            return 0
    return wanted


def _mappings(path: Path) -> list[tuple[int, int]]:
    """Return the address and length of every mapping of a file in this process."""
    name = str(path.resolve())
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                found.append((start, end - start))
    return found
