"""Others: no command asks another host, and `make audit` calls nothing free that it could not look up."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The script, writing elsewhere, with the answers of its tools."""
    spec = spec_from_file_location("audit_run", ROOT / "audit" / "run.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "lock").write_text("a==1 \\\n    --hash=sha256:0\nb==2 \\\n    --hash=sha256:1\n")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(sys, "argv", ["run.py"])

    def started(command, **_):
        tool = Path(command[0]).name
        if tool != "pip-licenses" and module.answers[tool] is not None:
            Path(command[command.index("-o") + 1]).write_text(json.dumps(module.answers[tool]))
        licences = [
            {"Name": n, "Version": "1", "License": text} for n, text in (("a", "MIT"), ("b", "GPLv3"))
        ]
        return SimpleNamespace(returncode=0, stdout=json.dumps(licences), stderr="no way to it")

    monkeypatch.setattr(module.subprocess, "run", started)
    module.answers = {"cyclonedx-py": {"components": [1, 2]}}
    return module


FINE, SKIPPED = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}
VULNERABLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("found", "status", "word"),
    [
        ([FINE, FINE], 0, "no known vulnerability in 2"), ([FINE, SKIPPED], 3, "NOT AUDITED: 1 of 2"),
        ([SKIPPED, SKIPPED], 3, "NOT AUDITED: 2 of 2"), (None, 3, "NOT AUDITED: 2 of 2"),
        ([SKIPPED, VULNERABLE], 1, "b 2: PYSEC-1, fixed in ['3']"),
    ],
)  # fmt: skip
def test_the_verdict(run, tmp_path, capsys, found, status, word):
    run.answers["pip-audit"] = None if found is None else {"dependencies": found}
    assert run.main() == status
    said = capsys.readouterr().out
    assert word in said
    assert ("no known vulnerability" in said) == (status == 0)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["copyleft"] == ["b"]
    assert report["sbom_components"] == 2
    assert "| b | 1 | GPLv3 |" in (tmp_path / "licences.md").read_text()


@pytest.mark.parametrize("lock", ["requirements.lock", "audit/requirements.lock"])
def test_every_locked_package_has_its_hashes(lock):
    lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert len(packages) > 40
    for line in packages:
        assert "==" in line
        assert "--hash=sha256:" in line


# --- the network ------------------------------------------------------------------------------------------

COMMANDS = """
fit data/train --out run --method trivial:blur --false-alarm-rate 0.2 --device cpu
fit data/train --out csi --method csi --settings.amplify.steps 2 --settings.amplify.width 4 --logger csv
info run
score run data/test --out scores.csv --heatmaps maps
evaluate run data/test --normal good
report run data/test --normal good --out report.html
calibrate run data/test/good --out calibrated
export run --out run.onnx
score run.onnx data/test --out exported.csv
stress run data/test/good
dissolve plus data/test --t [50] --count 1 --out dissolved.png
data check data/train
data list
methods
benchmark --datasets [phantom] --methods [trivial:blur] --seeds [0] --max-size 16 --ledger ledger.jsonl
"""

WATCH = """
import os, sys, time

def hook(event, args):
    address = None
    if event.startswith(("socket.getaddrinfo", "socket.gethostby", "socket.getnameinfo")):
        address = args[0]
    elif event.startswith(("socket.connect", "socket.send")) and isinstance(args[1], tuple):
        address = args[1]
    if address is not None:
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{event} {address} {sys.argv}\\n")

sys.addaudithook(hook)
first, calls = time.time(), 0

def goes_back():
    global calls
    calls += 1
    return first - 3600.0 * calls

time.time = goes_back
"""

RUN = """
import json, sys
from dia.cli.main import main

statuses = []
for line in json.load(sys.stdin):
    try:
        main(line.split())
        statuses.append(0)
    except SystemExit as end:
        statuses.append(end.code)
print("\\n" + json.dumps(statuses))
"""


def test_no_command_asks_another_host_and_none_needs_a_clock_that_goes_on(served_run, tmp_path):
    """In processes of their own, watched before anything is imported; at each look the clock goes back."""
    (tmp_path / "data").symlink_to(served_run.data)
    (tmp_path / "plus").symlink_to(served_run.run)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)  # for processes of these, too
    (tmp_path / "asked").touch()
    free = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MLFLOW_"))}
    path = os.pathsep.join([str(tmp_path / "watch"), str(ROOT / "src")])
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "ASKED": str(tmp_path / "asked")}
    lines = COMMANDS.strip().splitlines()
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(lines), text=True, capture_output=True,
        cwd=tmp_path, env=free | own, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert dict(zip(lines, statuses, strict=True)) == dict.fromkeys(lines, 0), done.stderr[-3000:]
    assert (tmp_path / "asked").read_text() == ""
    assert json.loads((tmp_path / "csi" / "config.json").read_text())["fit_seconds"] > 0
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["run_seconds"] >= 0


def test_the_watch_sees_who_asks(tmp_path):
    """By a name of this machine, which asks nobody outside."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    own = {"PYTHONPATH": str(tmp_path), "ASKED": str(tmp_path / "asked")}
    ask = "import socket, time; socket.getaddrinfo('localhost', 1); assert time.time() > time.time()"
    subprocess.run([sys.executable, "-c", ask], env=os.environ | own, check=True)
    assert (tmp_path / "asked").read_text().startswith("socket.getaddrinfo localhost")
