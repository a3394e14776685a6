"""The model that the service answers with: none where `dia serve` was given none, and exchanged whole.

A request holds on to the one that it began with. The first may be loaded while the page is served already,
as libraries and weights take seconds. Knows models and the batches of their scoring; knows no requests,
pages or files of marks.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np

from .batching import Batcher
from .limits import Limits, Refused

if TYPE_CHECKING:
    from ..deploy.predictor import Inferencer  # which imports torch

NO_MODEL = "no model is served yet: train one on the page, or start `dia serve RUN`"
LOADING = "the model is still being loaded; try again in a moment"


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
        self._loading: Future[Served | None] | None = None
        self._expected = False
        self._lock = threading.Lock()
        self._count = 0
        self._batchers: WeakSet[Batcher] = WeakSet()

    @property
    def there(self) -> bool:
        """Whether there is a model, or will be in a moment."""
        return self._served is not None or self.loading

    @property
    def loading(self) -> bool:
        """Whether the first model is being loaded."""
        return (
            self._expected and self._served is None and self._loading is not None and not self._loading.done()
        )

    @property
    def served(self) -> Served | None:
        """The model in use; None where there is none, or none yet."""
        return self._served

    def get(self) -> Served:
        """Returns the model in use.

        Raises:
            Refused: there is none (409), or none yet (503).
        """
        if (served := self._served) is None:
            raise Refused(503, LOADING) if self.loading else Refused(409, NO_MODEL)
        return served

    async def ready(self) -> None:
        """Waits while the first model, or what comes before it, is being loaded."""
        if (loading := self._loading) is not None and not loading.done():
            await asyncio.wait([asyncio.wrap_future(loading)])

    def begin(
        self, run: Path | None, *, normals: str | None = None, before: Callable[[], None] = lambda: None
    ) -> Future[Served | None]:
        """Begins to load the first model, in a thread.

        Args:
            run: written by `dia fit` or `dia update`; None where there is none, and nothing follows `before`.
            normals: as in `serve`.
            before: is called in the thread first.

        Returns:
            What `serve` returns, or the error that it raises.
        """
        loading: Future[Served | None] = Future()
        self._loading, self._expected = loading, run is not None

        def load() -> None:
            try:
                before()
                found = self.serve(run, normals=normals) if run is not None else None
            except BaseException as error:
                loading.set_exception(error)
            else:
                loading.set_result(found)

        threading.Thread(target=load, name="dia-load", daemon=True).start()
        return loading

    def serve(self, run: Path, *, normals: str | None = None) -> Served:
        """Loads a model folder and puts it in the place of the one in use, whose requests end in peace.

        Args:
            run: written by `dia fit` or `dia update`.
            normals: the training images, for neighbours and colours, as a path or known set.

        Raises:
            DataError: it is no model folder; the one in use stays.
        """
        from ..deploy.predictor import Inferencer

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
            batcher = Batcher(inferencer.score, self.limits)
            before, now = self._served, Served(run, inferencer, batcher, self._count)
            self._batchers.add(batcher)
            self._served = now
        if before is not None:
            before.batcher.finish()
        return now

    def close(self) -> None:
        """Ends all scoring, of models that were exchanged too; requests that wait are refused."""
        for batcher in list(self._batchers):
            batcher.close()
