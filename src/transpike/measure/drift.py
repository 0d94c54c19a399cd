"""How far two executions of one network are apart, step by step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..table import Table


@dataclass(frozen=True)
class Drift:
    """After steps first, first + 1, ...: `outputs`, the largest absolute difference of the network's output, whose
    largest size is `scale`; `spikes`, of `neurons`, how many emitted something else, beside `emitted`, how many
    spiked. `name` says what is held against the fast simulator."""

    name: str
    outputs: tuple[float, ...]
    scale: float
    spikes: tuple[int, ...]
    emitted: tuple[int, ...]
    neurons: int
    first: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        rows = tuple(
            (str(t), f"{difference:.3g}", f"{wrong:,}", f"{spikes:,}")
            for t, (difference, wrong, spikes) in enumerate(
                zip(self.outputs, self.spikes, self.emitted, strict=True), self.first
            )
        )
        note = f"largest output {self.scale:.4g}; {self.neurons:,} neurons, all samples together"
        columns = ("t", "max |output difference|", "spikes that differ", "spikes")
        return Table(f"Drift of the {self.name}", columns, rows, (note,))

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()
