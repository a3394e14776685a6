"""The learning curves: snapshots, what a run writes, what is there already, and the page's arithmetic."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import curves

from dia.data.catalog import load
from dia.detectors import CSI
from dia.detectors.csi import normality

TINY = {"amplify.width": 4, "amplify.batch": 4, "amplify.steps": 6, "samples": 1, "bank_size": 30}
TINY |= {"dissolver.size": 16, "dissolver.widths": [8, 16], "dissolver.steps": 4, "dissolver.batch": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of DIA on phantoms, with its ledger and folder."""
    folder = tmp_path_factory.mktemp("curves")
    how = {"ledger": folder / "curves.jsonl", "data_root": None, "work": folder, "size": 16, "count": 3}
    assert curves.run("phantom", "dia", 0, **how, changes=TINY, device="cpu")
    return how
