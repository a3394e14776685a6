"""The arguments of `dia explore` and `dia confirm`. Parses; does nothing else."""

from __future__ import annotations

from .helptext import ArgumentParser, examples

RECIPE_PLACES = {
    "explore": {"ledger": "results/explore.jsonl", "scores": ".work/explored"},
    "confirm": {"ledger": "results/runs.jsonl", "scores": "results/scores"},
}


def recipe_parsers() -> dict[str, ArgumentParser]:
    """By command; what all grids have is added to them."""
    explore = ArgumentParser(
        description="""Judge recipes on development data: no test set is read.

            Where a data set has a labelled val split, on that; and on lesions pasted into training normals
            that were left out. A recipe is a YAML file: date, reasoning, method, and of preset, settings,
            datasets, seeds, max_size what differs from the usual. What is in the ledger already is not run
            again.""",
        epilog=examples(
            "dia explore recipes/one.yaml recipes/other.yaml --data_root data",
            "dia explore recipes/one.yaml --datasets [breastmnist] --seeds [0,1,2] --data_root data",
        ),
    )
    explore.add_argument("recipes", type=str, nargs="+", help="YAML files")
    explore.add_argument("--datasets", type=list[str] | None, help="as [a,b] (default: the recipe's own)")
    explore.add_argument("--seeds", type=list[int], default=[0], help="as [0,1,2]")
    confirm = ArgumentParser(
        description="""Let a frozen recipe meet its test sets: once, with all its seeds.

            The file must be committed. A recipe that met a test set cannot be changed under its name, and
            settings that were run on it before confirm nothing; both are refused. The lines say how many
            recipes met that test set before. The same command goes on after an interruption.""",
        epilog=examples(
            "dia confirm recipes/one.yaml --data_root data",
            "dia confirm recipes/one.yaml --data_root data --ledger results/runs.jsonl --workers 2",
        ),
    )
    confirm.add_argument("recipe", type=str, help="a YAML file, committed")
    return {"explore": explore, "confirm": confirm}
