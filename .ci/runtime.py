"""Prints the part of requirements.lock, with its hashes, that some packages or extras of this one need.

The lock file says of each package what asked for it (`# via`); that is followed from the names given.

    python .ci/runtime.py medical serve          # what `pip install '.[medical,serve]'` needs
    python .ci/runtime.py --packages hatchling   # what a package needs
    python .ci/runtime.py medical --without-cuda # neither torch nor its CUDA libraries: its index is another
"""

import argparse
import re
import tomllib
from pathlib import Path

CUDA = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def name_of(requirement: str) -> str:
    """Returns the normalised name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def blocks(lock: str) -> dict[str, str]:
    """Returns the lines of each package of a lock file by its name, those for any Python together."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=[\w.-]+==)", lock, flags=re.M):
        if part.strip():
            found[name_of(part)] = found.get(name_of(part), "") + part
    return found


def askers(block: str) -> set[str]:
    """Returns the names of the packages that ask for a package."""
    said = re.findall(r"^ +#(?: via)? +(?!via)(\S+)", block, re.M)
    return {name_of(name) for name in said}


def needed(names: set[str], locked: dict[str, str]) -> set[str]:
    """Returns names and all that they ask for, directly or not."""
    found, before = set(names), set()
    while found != before:
        before = set(found)
        found |= {name for name, block in locked.items() if askers(block) & found}
    return found


def main() -> None:
    """Prints the lines."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("names", nargs="*", help="extras, or packages")
    p.add_argument("--packages", action="store_true", help="the names are of packages")
    p.add_argument("--without-cuda", action="store_true", help="leave torch and CUDA out")
    p.add_argument("--version-of", metavar="NAME", help="print NAME==VERSION alone")
    a = p.parse_args()
    root = Path(__file__).parents[1]
    locked = blocks((root / "requirements.lock").read_text())
    if a.version_of:
        return print(locked[a.version_of].split()[0])
    names = {name_of(name) for name in a.names}
    if not a.packages:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        wanted = [*project["dependencies"]]
        for extra in a.names:
            wanted += project["optional-dependencies"][extra]
        names = {name_of(requirement) for requirement in wanted}
    if absent := names - set(locked):
        p.error(f"not in requirements.lock: {', '.join(sorted(absent))}")
    kept = sorted(n for n in needed(names, locked) if not (a.without_cuda and CUDA.fullmatch(n)))
    print("".join(locked[name] for name in kept), end="")


if __name__ == "__main__":
    main()
