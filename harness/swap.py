"""How much was written to swap: memory that did not suffice makes a number wrong in silence.

psutil's `sout` is no help: on macOS it counts pageouts, which include files (memory pressure goes
to the compressor and shows as swapouts), on Linux it takes every page for 4 KiB, and 0 is what it
says where nothing can be read.
"""

import os
import platform
import re
from pathlib import Path

from harness.system import output_of, text_of


def swapped_out() -> int | None:
    """Bytes written to swap since the machine started; None where it does not tell."""
    if platform.system() == "Darwin":
        return parse_vm_stat(output_of("vm_stat"))
    return parse_vmstat(text_of(Path("/proc/vmstat")), os.sysconf("SC_PAGE_SIZE"))


def written_gb(before: int | None, after: int | None) -> float | None:
    """The difference of two readings in 1e9 bytes; None where one is missing."""
    return None if before is None or after is None else (after - before) / 1e9


def parse_vm_stat(report: str) -> int | None:
    """Bytes of the swapouts that macOS' `vm_stat` prints."""
    size = re.search(r"page size of (\d+) bytes", report)
    pages = re.search(r"^Swapouts:\s+(\d+)", report, re.MULTILINE)
    return int(size[1]) * int(pages[1]) if size and pages else None


def parse_vmstat(report: str, page_size: int) -> int | None:
    """Bytes of the swapouts in Linux' /proc/vmstat, which counts pages (proc_vmstat(5))."""
    pages = re.search(r"^pswpout (\d+)$", report, re.MULTILINE)
    return page_size * int(pages[1]) if pages else None
