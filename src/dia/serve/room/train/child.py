"""A process of `work.py`, as the server sees it: begun, heard, asked to stop, and killed where it does not.

Knows processes, pipes and signals; knows no run and no image.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

STARTING = "Starting, which takes some seconds"
GRACE = 25.0  # seconds after which a process that does not stop is killed


class Child:
    """A process of `work.py`.

    Args:
        job: what it does; see `work.run`.
        ended: called once, in a thread of its own, when the process has ended.

    Attributes:
        said: what it said last of each kind: `stage`, `done`, `total`, `unit`, `result`, `problem`,
            `stopped`.
    """

    command = (sys.executable, "-m", "dia.serve.room.train.work")

    def __init__(self, job: Mapping[str, Any], ended: Callable[[Child], None]):
        environment = {k: v for k, v in os.environ.items() if k != "DIA_TOKEN"} | {"HF_HUB_OFFLINE": "1"}
        self.said: dict[str, Any] = {}
        self.asked_to_stop = False
        self.begun = self._stage_begun = time.monotonic()
        self._lock, self._ended = threading.Lock(), ended
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip
        with suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(job).encode() + b"\n")  # stays open: its end is our end
            self.process.stdin.flush()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError), self._lock:
                said = json.loads(line)
                if said.get("stage", self.said.get("stage")) != self.said.get("stage"):
                    self._stage_begun = time.monotonic()
                    self.said.pop("done", None)
                self.said |= said
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._ended(self)

    def progress(self) -> dict[str, Any]:
        """Returns `stage`, `step`, `steps`, `unit`, `seconds` and `left_seconds` (of the stage; None)."""
        with self._lock:
            said, now = dict(self.said), time.monotonic()
        done, total, spent = said.get("done") or 0, said.get("total"), now - self._stage_begun
        left = spent / done * (total - done) if total and 0 < done < total and spent > 1 else None
        return {
            "stage": said.get("stage", STARTING), "step": done, "steps": total,
            "unit": said.get("unit", ""), "seconds": now - self.begun, "left_seconds": left,
        }  # fmt: skip

    def words(self, moved: Mapping[str, Any]) -> str:
        """Returns how far it is, in words.

        Args:
            moved: of `progress`.
        """
        if self.asked_to_stop:
            return "Stopping, and leaving a checkpoint"
        unit = f" {moved['unit']}" if moved["unit"] else ""
        far = f":{unit} {moved['step']} of {moved['steps']}" if moved["steps"] else ""
        return f"{moved['stage']}{far}"

    def stop(self) -> None:
        """Asks the process to leave a checkpoint and to end; one that does not is killed."""
        self.asked_to_stop = True
        self._signal(signal.SIGTERM)
        killer = threading.Timer(GRACE, self._signal, [signal.SIGKILL])
        killer.daemon = True
        killer.start()

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def join(self, seconds: float | None = None) -> bool:
        """Waits for its end and for what follows from that.

        Args:
            seconds: at most.

        Returns:
            Whether it has ended.
        """
        self._thread.join(seconds)
        return not self._thread.is_alive()
