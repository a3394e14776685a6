"""The page about a method of one's own, as a reader follows it: its file and commands, in fresh processes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dia.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "howto" / "own-method.md").read_text()
RUN = """
import json, sys
from dia.cli.main import main
from dia.data import phantoms

whole = phantoms.load
phantoms.load = lambda split, **options: whole(split, **{"n": 60, "size": 32} | options)  # fewer
for argv in json.loads(sys.argv[1]):
    main(argv)
"""


pytest.importorskip("onnxruntime", reason="the page exports: the extra `export`")


def test_the_page_from_the_file_to_the_report(tmp_path, capsys):
    source = re.search(r"```python\n(.*?)```", PAGE, re.S)[1]
    assert len(source.splitlines()) <= 60
    (tmp_path / "my_detector.py").write_text(source)
    commands = [shlex.split(line)[1:] for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()]
    fit, *others = commands
    assert "fit" in fit
    for some in ([fit], others):  # what is loaded was saved by another process
        argv = [sys.executable, "-c", RUN, json.dumps(some)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    files = [tmp_path / f"{name}.csv" for name in ("scores", "exported")]
    scores, exported = (np.loadtxt(file, delimiter=",", skiprows=1, usecols=1) for file in files)
    np.testing.assert_allclose(exported, scores, rtol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["mine", "trivial:std"]
    assert len(scores) == lines[0]["n_test"]
    assert np.ptp(scores) > 0
    for page in ("mine.html", "table/benchmark.md"):
        assert "mine" in (tmp_path / page).read_text()

    with pytest.raises(SystemExit, match="2"):  # this process has not loaded the file
        main(["score", str(tmp_path / "runs/mine"), "phantom", "--out", str(tmp_path / "other.csv")])
    assert "method mine is not known" in capsys.readouterr().err
    assert not (tmp_path / "other.csv").exists()
