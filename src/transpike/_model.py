"""module, calibration, recipe -> SpikingModel: the converted network, ready to simulate, price and save."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.fx

from ._capture import Captured
from ._dispatch import Dispatched, MaxMemory, chosen_map, dispatched, gather, weights
from ._execute import Program, batch_axis, cut, run_body, run_prefix
from ._memory import parts_that_fit
from ._normalise import redirect
from ._plan import Plan
from ._simulate import Run, simulate
from ._substitute import replaced, substituted
from .calibration import Calibration, batch_size
from .codecs import save
from .energy import EnergySheet, PaperAccount, PriceTable, energy_sheet, paper_account
from .errors import ConfigError
from .measure import Tally
from .neurons import Framed, Neuron, require_wide
from .recipes import Recipe
from .types import Layer, Role, Threshold


class SpikingModel:
    """A converted network. Its weights are those of the source module (shared, unchanged); all it adds are thresholds.

    Attributes: plan, recipe, calibration -- the decisions, all printable. source_module -- the module that was
    converted. unfoldable -- why the time-steps cannot be folded into the batch, or "". kernel -- how `simulate` runs
    neurons unless told otherwise: "auto", "compiled" or "eager". max_memory -- bytes that a run may take unless told
    otherwise; None is half of the memory available. precision -- "float32", "bfloat16" or "bfloat16x3".
    approximated -- nodes of nonlinear operators that the recipe approximates. dispatched -- where weights are that
    `dispatch` spread, or None. unsaved -- why the network has no saved form, or "".
    """

    def __init__(
        self,
        source_module: torch.nn.Module,
        captured: Captured,
        marked: torch.fx.GraphModule,
        plan: Plan,
        recipe: Recipe,
        calibration: Calibration,
        *,
        unfoldable: str = "",
    ) -> None:
        self.source_module = source_module
        self.captured = captured
        self.plan = plan
        self.recipe = recipe
        self.calibration = calibration
        self.unfoldable = unfoldable
        self.kernel = "auto"
        self.max_memory: int | None = None
        self.precision = "float32"
        self.unsaved = ""
        self.dispatched: Dispatched | None = None
        self.program = cut(substituted(marked, plan, recipe))
        self.approximated = frozenset(item.node for item in replaced(plan, recipe))
        self.neurons: Mapping[str, Neuron] = {}
        self.place_neurons()

    def place_neurons(self) -> None:
        """Put every site's neuron in its frame, on the device where it stands."""
        self.neurons = self.calibration.place(self.plan, self.recipe, self.device)
        self.needs: dict[tuple[Any, ...], tuple[int, int]] = {}  # memory of runs, as far as it was asked for
        if self.dispatched is not None:
            self.neurons = {
                site: Framed(neuron.neuron, neuron.frame.to(self.dispatched.sites[site]))  # type: ignore[misc]
                if isinstance(neuron, Framed) and site in self.dispatched.sites
                else neuron
                for site, neuron in self.neurons.items()
            }

    def changed(self, **attributes: Any) -> SpikingModel:
        """The network with other values of the attributes named; it shares the weights, and nothing that was computed
        from the old values."""
        new = copy.copy(self)
        for name, attribute in vars(SpikingModel).items():
            if isinstance(attribute, cached_property):
                new.__dict__.pop(name, None)
        new.__dict__.update(attributes)
        new.place_neurons()
        return new

    @property
    def thresholds(self) -> Mapping[str, Threshold]:
        return self.calibration.thresholds

    @cached_property
    def layers_by_node(self) -> Mapping[str, Layer]:
        """Layers whose operations are counted, by the name of their node in the marked graph: all that spike, and
        weight layers that stay analog behind a neuron."""
        behind = {node.name for node in self.program.body}
        weights = [layer for layer in self.plan.layers if layer.role is Role.WEIGHT and any(layer.signals)]
        counted = [layer for layer in self.plan.layers if layer.spiking] + [w for w in weights if w.node in behind]
        return {layer.node: layer for layer in counted}

    @property
    def device(self) -> torch.device:
        """Where inputs go and outputs come from."""
        if self.dispatched is not None:
            return self.dispatched.where.main
        return next((p.device for p in self.program.module.parameters()), torch.device("cpu"))

    def to(self, *args: Any, **kwargs: Any) -> SpikingModel:
        """Move or cast as `torch.nn.Module.to` does; the source module, which shares the weights, goes along. What
        `dispatch` spread comes together again, on its main device where none is named."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)  # as torch.nn.Module.to reads them
        if dtype is not None:
            require_wide(dtype, f"this network cannot be cast to {dtype}")
        main = self.device if device is None else device
        if self.dispatched is not None:
            self.program = gather(self.dispatched, self.captured.graph, self.source_module)
            self.dispatched = None
        self.source_module.to(*args, **kwargs).to(main)
        for module in (self.program.module, self.captured.graph):
            module.to(*args, **kwargs).to(main)
            for node in module.graph.nodes:
                redirect(node, self.device)
            module.recompile()
        self.captured = self.captured.cast(self.program.module)
        self.place_neurons()
        return self

    def dispatch(
        self,
        device_map: str | int | torch.device | Mapping[str, Any] = "auto",
        *,
        offload_folder: str | Path | None = None,
        max_memory: MaxMemory | None = None,
    ) -> SpikingModel:
        """Spread the weights over devices, the CPU and the disk, as `accelerate.dispatch_model` does, in place.

        An operator runs where its weights are; what is kept on the CPU (beside another device) or on disk is fetched
        while it is needed, and runs on the main device: the first of the map that is neither. The source module shares
        the weights, so those on disk leave it, too; `to(device)` brings all together again.
        Arguments: device_map -- {module path or prefix: device, "cpu" or "disk"}, where "" is all that no longer path
        names; one of these for everything; or "auto", "balanced", "balanced_low_0", "sequential" of accelerate.
        offload_folder -- for weights on disk: one safetensors file, named by its content. max_memory -- for "auto" and
        its like: {device: bytes or "10GB"}.
        Raises: ConfigError for a map that does not cover the model or names what is not there; MissingExtra.
        """
        if self.dispatched is not None:
            self.to("cpu")
        where = chosen_map(device_map, self.source_module, max_memory)
        self.dispatched = dispatched(
            self.program, self.captured.graph, self.source_module, where, offload_folder=offload_folder
        )
        self.program = self.dispatched.program
        self.place_neurons()
        return self

    @property
    def whole(self) -> Program:
        """The program as it was converted; of weights on disk it has only shape and type."""
        return self.program if self.dispatched is None else self.dispatched.whole

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and values of all weights, wherever they are, in the order of their names."""
        if self.dispatched is not None:
            return weights(self.dispatched)
        module = self.program.module
        return iter(sorted(dict([*module.named_parameters(), *module.named_buffers()]).items()))

    def require_together(self, purpose: str) -> None:
        """Raises ConfigError while weights are spread."""
        if self.dispatched is not None:
            raise ConfigError(
                f"dispatch() spread the weights of this network; bring them together for {purpose}: snn.to('cpu')"
            )

    @property
    def num_outputs(self) -> int | None:
        """Size of the output's last dimension: the number of classes, where the output is class scores."""
        value = self.program.result.meta["val"]
        return value.shape[-1] if value.dim() > 1 and isinstance(value.shape[-1], int) else None

    def prepare(self, inputs: Any) -> tuple[torch.Tensor, ...]:
        """The tensors of a batch, checked against the captured signature, on the model's device."""
        return tuple(leaf.to(self.device) for leaf in self.captured.flatten(inputs))

    def samples_in(self, leaves: tuple[torch.Tensor, ...]) -> int:
        return batch_size(self.captured, leaves)

    @property
    def batch_axes(self) -> tuple[int | None, ...]:
        """Where each input tensor has its batch."""
        return tuple(spec.batch_axis for spec in self.captured.inputs)

    @cached_property
    def neurons_per_sample(self) -> int:
        return sum(site.neurons for site in self.plan.sites)

    def simulate(
        self,
        inputs: Any,
        steps: int | None = None,
        *,
        mode: str = "auto",
        count: bool = True,
        kernel: str | None = None,
        max_memory: int | None = None,
        precision: str | None = None,
    ) -> Run:
        """Simulate `steps` time-steps on a batch of model inputs; see `transpike.simulate`."""
        steps = self.recipe.steps if steps is None else steps
        return simulate(
            self, inputs, steps=steps, mode=mode, count=count, kernel=kernel, max_memory=max_memory, precision=precision
        )

    @torch.no_grad()
    def source(self, inputs: Any) -> torch.Tensor:
        """The source module's own output on the same inputs, in parts that fit `max_memory`; of a dispatched network,
        that of its graph."""
        leaves = self.prepare(inputs)
        parts = parts_that_fit(self, leaves, steps=1, folded=True, count=False, budget=self.max_memory)
        outputs = [self._source(part) for part in parts]
        return outputs[0] if len(parts) == 1 else torch.cat(outputs, batch_axis(self.program.result))  # type: ignore[arg-type]

    def _source(self, leaves: tuple[torch.Tensor, ...]) -> torch.Tensor:
        from ._capture import fixed_arguments, primary

        if self.dispatched is not None:
            program = self.dispatched.source
            crossing = run_prefix(program, leaves)
            return run_body(program, crossing, lambda marker, value: value)
        args, kwargs = self.captured.structure.call(leaves)
        return primary(self.source_module(*args, **{**fixed_arguments(self.source_module), **kwargs}))

    def energy(self, run: Run | Tally) -> PaperAccount:
        """Price a run (or a tally) with the paper's account; prints as a table."""
        return paper_account(run.spikes if isinstance(run, Run) else run, self.plan)

    def energy_sheet(self, run: Run | Tally, prices: PriceTable | None = None) -> EnergySheet:
        """Price a run (or a tally) with every account against every opponent; prints as tables."""
        return energy_sheet(self, run.spikes if isinstance(run, Run) else run, prices)

    def save_pretrained(self, directory: str | Path, *, extra: Mapping[str, Any] | None = None) -> Path:
        """Write the converted network to a folder: safetensors + JSON, no calibration data, no pickle."""
        return save(self, Path(directory), extra=extra)

    def __str__(self) -> str:
        sites, neurons = len(self.plan.sites), sum(site.neurons for site in self.plan.sites)
        how = f"streams only: {self.unfoldable}" if self.unfoldable else "folds"
        name = f"{type(self.source_module).__name__}, recipe {self.recipe.name}"
        return f"SpikingModel({name}, {sites} sites, {neurons:,} neurons, {how})"

    __repr__ = __str__
