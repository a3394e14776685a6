"""Names the public functions of src/dia that take two or more arguments and have no `Args:`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

EXCEPT = {"property", "cached_property", "overload"}


def unexplained(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields the functions and methods without `Args:`."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from unexplained(child)
            continue
        a = child.args
        names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs) if x.arg not in ("self", "cls")]
        excepted = EXCEPT & {d.id for d in child.decorator_list if isinstance(d, ast.Name)}
        if len(names) > 1 and not excepted and "Args:" not in (ast.get_docstring(child) or ""):
            yield child


found = [(p, f) for p in sorted(Path("src/dia").rglob("*.py")) for f in unexplained(ast.parse(p.read_text()))]
print("\n".join(f"{path}:{f.lineno}: {f.name} has no `Args:`" for path, f in found))
sys.exit(bool(found))
