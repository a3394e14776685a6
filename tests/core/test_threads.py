"""The number of threads: as many as free cores, asleep where they wait, and what the user sets stays."""

import os
import subprocess
import sys

import pytest

from dia.core.running import threads


@pytest.mark.parametrize(
    ("others", "machine", "mine", "expected"),
    [
        (0.0, 2, 2, 2),
        (0.1, 2, 2, 2),  # a machine is never quite idle
        (1.0, 2, 2, 1),
        (1.3, 2, 2, 1),
        (2.0, 2, 2, 1),  # never none
        (10.0, 64, 64, 54),
        (10.0, 64, 8, 8),  # a container's quota
    ],
)
def test_there_are_as_many_threads_as_free_cores(others, machine, mine, expected):
    assert threads.free(others, machine, mine) == expected


def after(busy_of_others, monkeypatch):
    """The number that is set after a second in which others kept so many of four cores busy."""
    import torch

    looks = iter([(0.0, 100.0, 10.0), (1.5, 100.0 + 1.5 * (busy_of_others + 1), 11.5)])
    monkeypatch.setattr(threads, "_look", lambda: next(looks))
    monkeypatch.setattr(threads, "_now", 0)
    monkeypatch.setattr(threads.time, "monotonic", lambda: 1.5)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "_looked", None)
    for name in threads.SET:
        monkeypatch.delenv(name, raising=False)
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads.govern()
    threads.adapt()
    return found


@pytest.mark.parametrize(("busy", "expected"), [(0, 4), (2, 2), (4, 1)])
def test_what_this_process_takes_itself_does_not_count_as_busy(monkeypatch, busy, expected):
    assert after(busy, monkeypatch) == [expected]


def test_a_number_that_the_user_set_stays(monkeypatch):
    monkeypatch.setattr(threads, "_looked", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.govern()
    assert threads._looked is None
    assert threads.chosen() == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_threads_sleep_where_they_wait_unless_the_user_wants_otherwise(given, expected):
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
    code = "import dia, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == expected, done.stderr
