"""Where a run happens, as its line in the ledger says it."""

import json
import os
import platform

import pytest

from dia.core import environment
from dia.core.environment import commit_of, peak_memory_mb


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"ls-files": "evaluate/ledger.py", "rev-parse": "abc", "status": ""}, "abc"),
        ({"ls-files": "evaluate/ledger.py", "rev-parse": "abc", "status": " M x.py"}, "abc-dirty"),
        ({"ls-files": "", "rev-parse": "abc", "status": ""}, None),  # installed inside a foreign repository
        ({"ls-files": "x.py", "rev-parse": "", "status": "A x.py"}, None),  # no commit yet
    ],
)
def test_commit(monkeypatch, tmp_path, answers, expected):
    monkeypatch.setattr(environment, "_git", lambda directory, command, *_: answers[command])
    assert commit_of(tmp_path) == expected


def test_no_git_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert commit_of(tmp_path) is None


def test_environment(monkeypatch):
    monkeypatch.setattr(environment, "commit_of", lambda _: "abc")
    found = environment.environment()
    assert set(found) == {"device", "versions", "commit", "cpu_count"}
    assert set(found["versions"]) == {
        "python",
        "torch",
        "diffusers",
        "lightning",
        "numpy",
        "scikit-learn",
        "dia",
    }
    assert found["versions"]["python"] == platform.python_version()
    json.dumps(found)


def test_peak_memory_is_that_of_a_python_process():
    assert 10 < peak_memory_mb() < 100_000
