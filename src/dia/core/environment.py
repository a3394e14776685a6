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

_PACKAGES = {n: n for n in ("torch", "diffusers", "lightning", "numpy", "scikit-learn")} | {
    "dia": "dia-anomaly"
}


def environment() -> dict[str, Any]:
    """Returns where a run happens: `device`, `versions`, `commit` (see `commit_of`), `cpu_count`."""
    import torch  # only here: reading tables needs no torch

    device = "mps" if torch.backends.mps.is_available() else "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        versions[name] = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(distribution)
    commit = commit_of(Path(__file__).resolve().parents[1])
    return {"device": device, "versions": versions, "commit": commit, "cpu_count": os.cpu_count()}


def commit_of(package: Path) -> str | None:
    """Returns a package's commit, with '-dirty' if its files differ; None where git does not track them."""
    # an installed copy may lie inside a foreign repository, whose commit says nothing about it
    if not _git(package, "ls-files", "--", "."):
        return None
    commit = _git(package, "rev-parse", "HEAD")
    dirty = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}-dirty" if commit and dirty else commit or None


def changed_since_commit(file: Path) -> bool:
    """Returns whether a file differs from its committed form; True where git does not track it."""
    there, name = file.resolve().parent, file.name
    return not _git(there, "ls-files", "--", name) or bool(_git(there, "status", "--porcelain", "--", name))


def _git(directory: Path, *args: str) -> str:
    """Returns the output of git in `directory`; empty where it fails or there is no git."""
    # no optional locks: a look must not disturb a commit under way
    command = ["git", "--no-optional-locks", "-C", str(directory), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def reset_peak_memory() -> None:
    """Resets `peak_memory_mb` where the system can (Linux), so that one run's peak is its own."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is given back (glibc)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Returns the highest resident memory of this process in MiB (host memory, not the accelerator's)."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere
