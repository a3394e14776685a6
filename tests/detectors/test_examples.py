"""The examples in docstrings of dissolving, amplifying and the detectors give what they say."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "dissolve.schedule",
    "dissolve.controls",
    "dissolve.transform",
    "amplify.loss",
    "amplify.augment",
    "detectors.base",
    "detectors.calibration",
]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_examples_give_what_they_say(name):
    failed, attempted = doctest.testmod(import_module(f"dia.{name}"))
    assert failed == 0 < attempted
