"""Where neurons go, as a value."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .errors import ConfigError
from .types import Layer


@dataclass(frozen=True)
class Policy:
    """Where neurons go. Frozen and serialisable; each recipe carries one, and the plan prints it.

    Arguments:
        first_layer -- "analog": a weight layer that reads the raw input gets no neuron; "spiking": it does.
        head -- "analog" or "spiking": the weight layer whose result is the output up to scale and bias.
        elementwise_products -- "spiking": both operands of x * y (gates) get neurons; "compensated": kept exact.
        analog -- module-name patterns (as in `fnmatch`) whose layers get no neuron.
        sites -- "all", or "activations": weight layers that read an activation, or a product with one (a gate), only.
        allow_unknown -- operators without a rule run on running means as they are, and every report lists them.
    """

    first_layer: str = "analog"
    head: str = "spiking"
    elementwise_products: str = "spiking"
    analog: tuple[str, ...] = ()
    allow_unknown: bool = False
    sites: str = "all"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("first_layer", ("analog", "spiking")),
            ("head", ("analog", "spiking")),
            ("elementwise_products", ("spiking", "compensated")),
            ("sites", ("all", "activations")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if isinstance(self.analog, str) or not all(isinstance(pattern, str) for pattern in self.analog):
            raise ConfigError(f"analog takes a list of module-name patterns, not {self.analog!r}")
        object.__setattr__(self, "analog", tuple(self.analog))

    def check_patterns(self, layers: Iterable[Layer]) -> None:
        """Raises ConfigError naming a pattern that matches the module of no layer: a slip would go unseen."""
        modules = {layer.module for layer in layers}
        for pattern in self.analog:
            if not any(fnmatch.fnmatchcase(module, pattern) for module in modules):
                close = difflib.get_close_matches(pattern, modules, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise ConfigError(
                    f"analog pattern {pattern!r} matches the module of no layer; {hint}transpike inspect names them"
                )

    def lines(self) -> tuple[str, ...]:
        text = f"first layer {self.first_layer}, head {self.head}, elementwise products {self.elementwise_products}"
        text += "" if self.sites == "all" else ", neurons behind activations only"
        return (text + (f", analog by name: {', '.join(self.analog)}" if self.analog else ""),)

    def to_json(self) -> dict[str, Any]:
        """`sites` only where it says something, so that older versions read what they can run."""
        data = asdict(self)
        return data if self.sites != "all" else {key: value for key, value in data.items() if key != "sites"}
