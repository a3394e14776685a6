"""Ray, started once, for scoring and for grids of runs. Ray is imported only here."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

from .errors import DataError


def start_ray(address: str | None) -> tuple[Any, bool]:
    """Starts Ray, or joins the cluster at `address`; returns it and whether it was started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it announces a change to come
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise DataError("--executor ray needs Ray: pip install 'dia-anomaly[cluster]'") from error
    if ray.is_initialized():
        return ray, False
    try:
        if address:  # Ray itself would try for a quarter of an hour
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except Exception as error:  # no one class for what may fail here
        where = address or "this machine"
        raise DataError(f"Ray: no start on {where} ({last_line(error)}); see --ray-address") from error
    return ray, True


def last_line(error: BaseException) -> str:
    """Returns the last line of an error, which is the informative one of Ray's long texts."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:300]
