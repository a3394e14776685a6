"""The model that the service answers with: none at first where `dia serve` was given none, and exchanged whole.

A request holds on to the one that it began with. Knows models and the batches of their scoring; knows no
requests, pages or files of marks.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..deploy.predictor import Inferencer
from .batching import Batcher
from .limits import Limits, Refused

NO_MODEL = "no model is served yet: train one on the page, or start `dia serve RUN`"


@dataclass(frozen=True)
class Served:
    """One model while it is served.

    Args:
        run: the model folder.
        inferencer: the model, loaded.
        batcher: scores images of several requests together.
        number: counts the models of this process, from 1; another number is another model.
    """

    run: Path
    inferencer: Inferencer
    batcher: Batcher
    number: int


class Current:
    """The model in use, for any number of threads.

    Args:
        limits: of the batches.
        device: of the models.
        data_root: where known data sets lie.
    """

    def __init__(self, limits: Limits, *, device: str = "auto", data_root: str | None = None):
        self.limits, self.device, self.data_root = limits, device, data_root
        self._served: Served | None = None
        self._lock = threading.Lock()
        self._count = 0

    @property
    def there(self) -> bool:
        """Whether there is a model."""
        return self._served is not None

    def get(self) -> Served:
        """Returns the model in use.

        Raises:
            Refused: there is none (409).
        """
        if (served := self._served) is None:
            raise Refused(409, NO_MODEL)
        return served

    def serve(self, run: Path, *, normals: str | None = None) -> Served:
        """Loads a model folder and puts it in the place of the one in use, whose requests end in peace.

        Args:
            run: written by `dia fit` or `dia update`.
            normals: the training images, for neighbours and colours, as a path or known set.

        Raises:
            DataError: it is no model folder; the one in use stays.
        """
        inferencer = Inferencer(run, device=self.device, normals=normals, data_root=self.data_root)
        inferencer.score(np.zeros((1, *inferencer.shape), np.uint8))  # the first pass is slow
        return self.use(inferencer, run)

    def use(self, inferencer: Inferencer, run: Path) -> Served:
        """Puts a loaded model in the place of the one in use.

        Args:
            inferencer: the model.
            run: its folder.
        """
        with self._lock:
            self._count += 1
            before, now = self._served, Served(run, inferencer, Batcher(inferencer.score, self.limits), self._count)
            self._served = now
        if before is not None:
            before.batcher.finish()
        return now

    def close(self) -> None:
        """Ends the scoring of the model in use; requests that wait are refused."""
        if self._served is not None:
            self._served.batcher.close()
