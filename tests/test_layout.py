"""The way of the data: a folder imports only from folders to its left."""

import ast
from pathlib import Path

import pytest

import dia

ORDER = ["data", "dissolve", "amplify", "detectors", "evaluate", "apps"]
ROOT = Path(dia.__file__).parent
FILES = sorted(p for folder in ORDER for p in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_left(path):
    here = ORDER.index(path.parent.name)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            folder = (node.module or node.names[0].name).split(".")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dia."):
            folder = node.module.split(".")[1]
        else:
            continue
        assert folder not in ORDER or ORDER.index(folder) <= here, f"{path.name}:{node.lineno}"


def test_every_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
