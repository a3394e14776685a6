"""`make audit`: what could not be looked up is never called free of vulnerabilities."""

import json
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
