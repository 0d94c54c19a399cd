"""A table as a value: whoever holds numbers builds one, whoever shows it decides how."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import rich.box
import rich.console
import rich.table

WIDTH = 200  # at which remarks wrap, unless the table is wider


@dataclass(frozen=True)
class Table:
    """Title, column names, rows of text, closing remarks. `str()` gives plain aligned text; rich renders it itself."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def __rich__(self) -> rich.console.RenderableType:
        table = self._grid()
        return rich.console.Group(table, *self.notes) if self.notes else table

    def __str__(self) -> str:
        console = rich.console.Console(file=io.StringIO(), width=1 << 20, color_system=None)
        console.width = max(console.measure(self._grid()).maximum, WIDTH)
        console.print(self.__rich__(), highlight=False, markup=False)
        return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines())  # type: ignore[attr-defined]

    def _grid(self) -> rich.table.Table:
        table = rich.table.Table(
            title=self.title or None, title_justify="left", box=rich.box.SIMPLE_HEAD, pad_edge=False
        )
        for index, column in enumerate(self.columns):
            justify = "left" if index == 0 or not self._numeric(index) else "right"
            table.add_column(column, justify=justify, overflow="fold")  # on a narrow terminal, too, no digit is lost
        for row in self.rows:
            table.add_row(*row)
        return table

    def _numeric(self, index: int) -> bool:
        cells = [row[index] for row in self.rows if row[index].strip()]
        return bool(cells) and all(cell.strip()[0] in "+-.0123456789" for cell in cells)


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long path, so that both ends stay readable."""
    return text if len(text) <= width else text[: width // 2 - 1] + "..." + text[-(width - width // 2 - 2) :]


def cells(values: Sequence[float], digits: int = 2) -> tuple[str, ...]:
    return tuple(f"{value:.{digits}f}" for value in values)


def decimals(value: float) -> str:
    """With two decimals; what they would not show, with three digits: 0.000123."""
    return f"{value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
