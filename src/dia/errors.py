"""What the command line says in one line beside `DataError`. Here, so that to know it takes no torch."""

from __future__ import annotations

from collections.abc import Sequence


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer finite, or processes cannot share the work.

    Attributes:
        batch: which of the training images were in the batch at fault; empty where no batch is.
        of: the number of training images.
    """

    def __init__(self, message: str, batch: Sequence[int] = (), of: int = 0):
        super().__init__(message)
        self.batch, self.of = batch, of
