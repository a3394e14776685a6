"""The notebooks run, come to what they say, and are kept with outputs that tell nothing of a machine."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ["first_detector", "reproduce_and_ablate"]


def run(name, monkeypatch, last):
    """What the code `last` prints, as JSON, after a short run of the notebook."""
    monkeypatch.setenv("DIA_FAST", "1")
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.execute(FOLDER / f"{name}.ipynb", last=f"import json\nprint(json.dumps({last}))")
    return json.loads(made.cells[-1].outputs[-1].text)


@pytest.mark.parametrize("name", NAMES)
def test_kept_with_outputs_of_one_run(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [o for cell in code for o in cell.outputs]
    assert {o.output_type for o in outputs} <= {"stream", "display_data", "execute_result"}  # no errors
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"(?<![\w.*>])/(tmp|home|root|work|Users|usr|opt)\b", text)


def test_a_first_detector(monkeypatch):
    last = (
        "dict(n=len(scores), shape=list(train.images.shape), auroc=measured['auroc'], maps=list(maps.shape), "
        "same=same, ok=found['ok'], rows=len(aurocs), p=[p_values.min(), p_values.max()], "
        "n_calibration=detector.n_calibration_, page=report.stat().st_size, "
        "flagged=[bool(f) for f in flagged], above=[bool(s > threshold) for s in scores], "
        "masks=int(test.masks.any((1, 2)).sum()))"
    )
    made = run("first_detector", monkeypatch, last)
    assert made["shape"] == [80, 24, 24, 1]
    assert made["maps"] == [40, 24, 24]
    assert made["n"] == 40
    assert made["masks"] == 20
    assert made["ok"]
    assert made["same"]
    assert made["rows"] == 6
    assert 0 < made["auroc"] < 1
    assert 1 / (made["n_calibration"] + 1) <= made["p"][0] <= made["p"][1] <= 1
    assert made["flagged"] == made["above"]
    assert made["page"] > 10_000


def test_reproduce_and_ablate(monkeypatch):
    last = (
        "dict(lines=len(ledger.rows()), cells=[list(r.cell.names) for r in made], as_csi=as_csi, "
        "seeds=[len(r.aurocs) for r in made], against=list(over_csi), changed=sorted(changed), "
        "none=list(made[2].aurocs.values()), csi=aurocs['csi'], "
        "diffusion=list(made[0].aurocs.values()), dia=aurocs['dia'], "
        "picture=Path('ablation.png').stat().st_size)"
    )
    made = run("reproduce_and_ablate", monkeypatch, last)
    assert made["lines"] == 5 * 2
    assert made["cells"] == [["diffusion"], ["gaussian"], ["none"]]
    assert made["seeds"] == [2, 2, 2]
    assert made["as_csi"]
    assert made["none"] == made["csi"]
    assert made["diffusion"] == made["dia"]  # the reference is dia with the same settings
    assert {"amplify.optimizer", "dissolver.steps", "ts", "live"} <= set(made["changed"])
    assert made["picture"] > 5000
