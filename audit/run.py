"""The supply chain, looked at: vulnerabilities, licences and a bill of materials of the locked packages.

`make audit` runs this with tools of its own (`audit/requirements.lock`), in their own environment. Knows
the lock file and what is installed; knows nothing of DIA.

Writes `audit/report.json` and `audit/licences.md`, which are kept, and `audit/out/sbom.cdx.json` (CycloneDX),
which belongs to a release. Exit status: 0 all is well; 1 vulnerabilities; 3 packages that could not be
audited, such as without a way to the advisory database. pip-audit alone calls the last "no known
vulnerabilities found".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOCK = HERE.parent / "requirements.lock"
COPYLEFT = ("GPL", "General Public")  # LGPL and AGPL too
TOOLS = Path(sys.executable).parent


def main() -> int:
    """Runs the three tools, says what they found, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", default=".venv/bin/python", help="interpreter whose packages are installed"
    )
    python = parser.parse_args().python
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    audited = audit(out / "pip-audit.json")
    licences = licences_of(python)
    sbom = out / "sbom.cdx.json"
    components = bill_of_materials(sbom)
    copyleft = sorted(p["Name"] for p in licences if any(word in p["License"] for word in COPYLEFT))
    report = {
        "lock_sha256": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "packages": audited["packages"],
        "audited": audited["audited"],
        "vulnerabilities": audited["vulnerabilities"],
        "licences": dict(Counter(p["License"] for p in licences).most_common()),
        "copyleft": copyleft,
        "sbom_components": components,
    }
    (HERE / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (HERE / "licences.md").write_text(table(licences))
    print(f"bill of materials: {components} components, {sbom}")
    print(
        f"licences: {len(licences)} packages, audit/licences.md; under a GPL: {', '.join(copyleft) or 'none'}"
    )
    missing = audited["packages"] - audited["audited"]
    for line in audited["vulnerabilities"]:
        print(f"VULNERABLE: {line}")
    if missing:
        print(
            f"NOT AUDITED: {missing} of {audited['packages']} packages: the advisory database could not be "
            "reached, or does not know them; run `make audit` where it can be"
        )
    if not missing and not audited["vulnerabilities"]:
        print(f"no known vulnerability in {audited['packages']} packages")
    return 1 if audited["vulnerabilities"] else 3 if missing else 0


def audit(file: Path) -> dict[str, Any]:
    """How many packages of the lock file were looked up, and the vulnerabilities found."""
    command = [
        "pip-audit",
        "-r",
        str(LOCK),
        "--require-hashes",
        "--disable-pip",
        "-f",
        "json",
        "-o",
        str(file),
    ]
    file.unlink(missing_ok=True)
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    locked = sum("==" in line for line in LOCK.read_text().splitlines())
    if not file.exists():
        print(f"pip-audit: {(done.stderr.strip().splitlines() or ['no answer'])[-1][:200]}")
        return {"packages": locked, "audited": 0, "vulnerabilities": []}
    found = json.loads(file.read_text())["dependencies"]
    named = [(p, v) for p in found for v in p.get("vulns", [])]
    lines = [f"{p['name']} {p['version']}: {v['id']}, fixed in {v['fix_versions']}" for p, v in named]
    looked_up = sum("skip_reason" not in p for p in found)
    return {"packages": len(found) or locked, "audited": looked_up, "vulnerabilities": lines}


def licences_of(python: str) -> list[dict[str, str]]:
    """What the installed packages say of their licences, but for our own."""
    command = [str(TOOLS / "pip-licenses"), "--python", python, "-f", "json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return [p for p in found if p["Name"] != "dia-anomaly"]


def table(licences: list[dict[str, str]]) -> str:
    """The licence report."""
    rows = "".join(f"| {p['Name']} | {p['Version']} | {p['License']} |\n" for p in licences)
    return (
        "# Licences of the locked packages\n\nAs the packages state them, all extras included; written by "
        f"`make audit`.\n\n| package | version | licence |\n|---|---|---|\n{rows}"
    )


def bill_of_materials(file: Path) -> int:
    """Writes the CycloneDX file and returns how many components it has."""
    command = ["requirements", str(LOCK), "--pyproject", str(HERE.parent / "pyproject.toml"), "--of", "JSON"]
    command += ["--output-reproducible", "-o", str(file)]
    done = subprocess.run(
        [str(TOOLS / "cyclonedx-py"), *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"cyclonedx-py: {done.stderr.strip()[-300:]}")
    return len(json.loads(file.read_text())["components"])


if __name__ == "__main__":
    sys.exit(main())
