"""What the command line says in one line beside `DataError`. Here, so that to know it takes no torch."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer finite. Names the step."""
