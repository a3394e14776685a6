"""Where a run happens: device, versions, commit, peak memory. Knows the machine and git; knows no run."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

VERSIONS_OF = ("torch", "diffusers", "lightning", "numpy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Where a run happens: `device`, `versions`, `commit` (see `commit_of`), `cpu_count`."""
    import torch  # only here: reading tables needs no torch

    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    elif torch.backends.mps.is_available():
        device = "mps"
    versions = {"python": platform.python_version(), **{name: _version(name) for name in VERSIONS_OF}}
    versions["dia"] = _version("dia-anomaly")
    package = Path(__file__).resolve().parents[1]
    return {
        "device": device,
        "versions": versions,
        "commit": commit_of(package),
        "cpu_count": os.cpu_count(),
    }


def commit_of(package: Path) -> str | None:
    """Commit of `package`, with '-dirty' if its files differ from it; None where git does not track them."""
    # an installed copy may lie inside a foreign repository, whose commit says nothing about it
    if not _git(package, "ls-files", "--", "."):
        return None
    commit = _git(package, "rev-parse", "HEAD")
    dirty = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}-dirty" if commit and dirty else commit or None


def changed_since_commit(file: Path) -> bool:
    """Whether a file differs from what was committed of it; where git does not track it, it does."""
    there, name = file.resolve().parent, file.name
    return not _git(there, "ls-files", "--", name) or bool(_git(there, "status", "--porcelain", "--", name))


def _git(directory: Path, *args: str) -> str:
    """Output of git in `directory`; empty where it fails or there is no git."""
    # no optional locks: a look must not disturb a commit under way
    command = ["git", "--no-optional-locks", "-C", str(directory), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def reset_peak_memory() -> None:
    """Starts `peak_memory_mb` anew where the system can (Linux), so that one run's peak is its own."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is given back (glibc)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Highest resident memory of this process in MiB (host memory, not the accelerator's)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
