"""How many threads compute: as many as there are free cores, looked up again each second.

Threads that share each small operation wait for the slowest of them. Where other programs want the
same cores, that one has to wait for its turn, thousands of times in a second, and all are slower than one
thread would be; the threads that wait burn the time that the slowest needs. So waiting threads sleep
(`wait_passively`), and a command takes fewer threads while others work (`govern`, `adapt`). Whoever sets
OMP_NUM_THREADS keeps that number, and with it the last digits of results. Knows the machine; imports torch
only where it is loaded already.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

SET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # by which a user decides
_EVERY = 1.0  # seconds between two looks
_SHORTEST = 0.2  # seconds of a first look
_NEARLY = 0.3  # of a core that may be busy and still counts as free
_STAT, _QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")

_looked: tuple[float, float, float] | None = None  # time, busy seconds of all cores, of this process
_now = 0  # threads in use; 0 for torch's own number


def wait_passively() -> None:
    """Lets OpenMP's threads sleep where they wait, unless the user wants otherwise. Call it before torch."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("KMP_BLOCKTIME", "0")  # of Intel's runtime and LLVM's


def cores() -> int:
    """Returns the number of cores that this process may use: its affinity and its container's quota."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return max(min(there, math.ceil(int(quota) / int(period))), 1)
    except (OSError, ValueError):  # no such file, or `max`
        return there


def govern() -> None:
    """Lets `adapt` choose the number of threads of this process from now on."""
    global _looked
    if not any(name in os.environ for name in SET):
        _looked = _look()


def adapt() -> None:
    """Takes as many threads as there are free cores, at most once a second; does nothing unless governed."""
    global _looked, _now
    if _looked is None or time.monotonic() - _looked[0] < (_EVERY if _now else _SHORTEST):
        return
    before, _looked = _looked, _look()
    if _looked is None:
        return
    seconds, busy, own = (now - then for now, then in zip(_looked, before, strict=True))
    wanted = free(max(busy - own, 0.0) / seconds, os.cpu_count() or 1, cores())
    if wanted != _now and (torch := sys.modules.get("torch")):
        _now = wanted
        torch.set_num_threads(wanted)


def chosen() -> int:
    """Returns the number of threads that a library other than torch should take; 0 for its own number."""
    for name in SET:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    adapt()
    return _now if _looked is not None else 0


def onnxruntime_options(ort: Any, threads: int) -> Any:
    """Returns options of onnxruntime: errors alone are told, threads that wait let others work, ONNX alone.

    Args:
        ort: the module onnxruntime.
        threads: that one operator may take; 0 for its own number.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # onnxruntime warns of every graph
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return options


def free(others: float, machine: int, mine: int) -> int:
    """Returns the number of free cores, at least one.

    Args:
        others: cores that other programs keep busy, on average.
        machine: cores of the machine.
        mine: cores that this process may use.
    """
    return max(min(mine, math.floor(machine - others + _NEARLY)), 1)


def _look() -> tuple[float, float, float] | None:
    """Returns the time, and busy seconds of all cores and of this process; None where they cannot be had."""
    try:
        first = _STAT.read_text().partition("\n")[0].split()[1:]
        ticks = [int(value) for value in first]
        # but for idle, and waiting for disks
        busy = (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    own = os.times()
    return time.monotonic(), busy, own.user + own.system
