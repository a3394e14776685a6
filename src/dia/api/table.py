"""A table of predictions: path, score, p and flagged of each image. Knows numbers and names only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from ..core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from ..detectors.calibration import HeatScale
    from ..evaluate.findings import Finding

_SHOWN = 10  # rows of a table


class Row(NamedTuple):
    """What is known of one image.

    Attributes:
        path: its path, or its number where it came from no file.
        score: raw, higher = more anomalous.
        p: the share of normals, itself among them, that score at least as high.
        flagged: whether p is at most the false-alarm rate.
    """

    path: str
    score: float
    p: float
    flagged: bool


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """A table of path, score, p and flagged, one row for each image, in the order given.

    It has a length, iterates over `Row`s, and is indexed by integers and slices; `pandas.DataFrame(table)`
    works, as does `to_pandas`.

    Args:
        path: N names.
        score: `(N,)` float64, raw, higher = more anomalous.
        p: `(N,)`, the conformal p-values.
        flagged: `(N,)` bool.
        threshold: the score above which an image is flagged; infinite where the normals are too few.
        false_alarm_rate: the share of normals that is flagged at most, on average.
        heatmaps: `(N, H, W)` float32 where they were asked for.
        drift: the verdict on the images as a whole, with `alarm` and `words`.
        skipped: one line for each file that could not be read.
        heat: what heatmaps of normals are like; None where the model does not know.
        sizes: (height, width) of each image before it was resized to the model's size.
        spacing: for each image mm between rows and between columns, None where its file does not tell.
        slices: for each image its number in its volume, from 0, as in the file; None where it is no slice.
    """

    path: Sequence[str]
    score: np.ndarray
    p: np.ndarray
    flagged: np.ndarray
    threshold: float
    false_alarm_rate: float
    heatmaps: np.ndarray | None = None
    drift: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[str] = ()
    heat: HeatScale | None = None
    sizes: Sequence[tuple[int, int]] = ()
    spacing: Sequence[tuple[float, float] | None] = ()
    slices: Sequence[int | None] = ()

    def __len__(self) -> int:
        return len(self.path)

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> Predictions: ...
    def __getitem__(self, index: int | slice | np.ndarray) -> Row | Predictions:
        """Returns a row at an integer, or the table of some rows."""
        if isinstance(index, int | np.integer):
            i = index
            return Row(self.path[i], float(self.score[i]), float(self.p[i]), bool(self.flagged[i]))
        where = np.arange(len(self))[index]
        maps = None if self.heatmaps is None else self.heatmaps[where]
        return replace(
            self, path=[self.path[i] for i in where], score=self.score[where], p=self.p[where],
            flagged=self.flagged[where], heatmaps=maps,
            sizes=[self.sizes[i] for i in where] if self.sizes else (),
            spacing=[self.spacing[i] for i in where] if self.spacing else (),
            slices=[self.slices[i] for i in where] if self.slices else (),
        )  # fmt: skip

    def ranked(self) -> Predictions:
        """Returns the same rows, the most anomalous first."""
        return self[np.argsort(-self.score, kind="stable")]

    def findings(self, false_alarm_rate: float | None = None) -> list[list[Finding]]:
        """Finds what is higher in the heatmaps than at most a share of normal images is anywhere.

        Args:
            false_alarm_rate: that share; the table's where None.

        Returns:
            The findings of each row, the highest peak first, in pixels of the image as it was given. `slice`
            is the number of the slice in its volume, or the row's where it is none;
            `dia.evaluate.findings.joined` joins those of a volume to lesions.

        Raises:
            DataError: the table has no heatmaps, or the normals are too few for the rate.
        """
        from ..evaluate.findings import findings_of, why_none

        rate = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        if self.heatmaps is None:
            raise DataError("findings are made of heatmaps: give predict(…, heatmaps=True)")
        if not 0 < rate < 1:
            raise DataError(f"false_alarm_rate must lie between 0 and 1, not {rate:g}; 5 % is 0.05")
        if self.heat is None or (why := why_none(self.heat, rate)):
            raise DataError(why if self.heat is not None else why_none(None, rate))
        none = [None] * len(self)
        rows = zip(self.heatmaps, self.sizes or none, self.spacing or none, self.slices or none, strict=True)
        return [
            findings_of(heatmap, self.heat, rate, size=size, spacing=mm, slice=i if k is None else k)
            for i, (heatmap, size, mm, k) in enumerate(rows)
        ]

    def to_pandas(self) -> pd.DataFrame:
        """Returns a data frame with the columns path, score, p and flagged.

        Raises:
            DataError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise DataError("a data frame needs pandas: pip install pandas") from error
        return pd.DataFrame({name: getattr(self, name) for name in Row._fields})

    def _head(self) -> str:
        n, most = len(self), f"at most {100 * self.false_alarm_rate:.3g} % of normals are, on average"
        if not np.isfinite(self.threshold):
            most = f"too few normals to promise {100 * self.false_alarm_rate:.3g} %"
        return f"{n} image{'s' * (n != 1)}, {int(self.flagged.sum())} flagged ({most})"

    def _cells(self) -> list[tuple[str, ...]]:
        return [(r.path, f"{r.score:.4g}", f"{r.p:.3g}", "yes" if r.flagged else "") for r in self[:_SHOWN]]

    def __repr__(self) -> str:
        rows = [Row._fields, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        more = [f"… and {len(self) - _SHOWN} more"] * (len(self) > _SHOWN)
        return "\n".join([self._head(), *lines, *more])

    def _repr_html_(self) -> str:
        """Returns the table for notebooks."""
        head = "".join(f"<th>{name}</th>" for name in Row._fields)
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self._cells())
        more = f"<p>… and {len(self) - _SHOWN} more</p>" * (len(self) > _SHOWN)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<p>{escape(self._head())}</p><table><tr>{head}</tr>{body}</table>{more}"
