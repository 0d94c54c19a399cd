"""Where neurons go, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """Where neurons go. Frozen and serialisable; each recipe carries one, and the plan prints it.

    Arguments:
        first_layer -- "analog": a weight layer that reads the raw input gets no neuron; "spiking": it does.
        head -- "analog" or "spiking": the weight layer whose result is the output up to scale and bias.
        elementwise_products -- "spiking": both operands of x * y (gates) get neurons; "compensated": kept exact.
        analog -- module-name patterns (as in `fnmatch`) whose layers get no neuron.
        allow_unknown -- operators without a rule run on running means as they are, and every report lists them.
    """

    first_layer: str = "analog"
    head: str = "spiking"
    elementwise_products: str = "spiking"
    analog: tuple[str, ...] = ()
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("first_layer", ("analog", "spiking")),
            ("head", ("analog", "spiking")),
            ("elementwise_products", ("spiking", "compensated")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        object.__setattr__(self, "analog", tuple(self.analog))

    def lines(self) -> tuple[str, ...]:
        text = f"first layer {self.first_layer}, head {self.head}, elementwise products {self.elementwise_products}"
        return (text + (f", analog by name: {', '.join(self.analog)}" if self.analog else ""),)
