"""A network in which every ReLU speaks through a neuron: what a chip without analog signals, and NIR, can hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from .. import ops
from .._capture import module_path
from .._execute import cut
from ..calibration import calibrate
from ..calibration.observe import granularities
from ..errors import ConfigError
from ..ops.shape import KEEPS_ALL
from ..types import Site, SiteKind

if TYPE_CHECKING:
    from .._model import SpikingModel

aten = torch.ops.aten


def relu_neurons(model: SpikingModel, batches: Iterable[Any], *, max_samples: int | None = 512) -> SpikingModel:
    """The same network, but whoever reads a ReLU reads the spikes of a neuron behind it.

    In a converted network the residual stream is analog: a shortcut carries the compensated ReLU itself. Here it
    carries what the neuron behind the ReLU emits, and a ReLU that only analog operators read (before a pool) gets a
    neuron of its own, whose threshold the recipe's rule sets on `batches`, model inputs. It is another network: measure
    it before use. It shares the model's weights, and has no saved form. Raises CalibrationError for no samples,
    ConfigError where the recipe sets thresholds of all sites together.
    """
    model.require_together("neurons behind ReLUs")
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(model.program.module.graph, {}))
    added: list[Site] = []
    taken = {site.name for site in model.plan.sites}
    for node in list(graph.nodes):
        if node.target is not aten.relu.default or next(_analog_readers(node), None) is None:
            continue
        marker = next((user for user in node.users if ops.is_site(user)), None)
        if marker is None:
            marker = _new_site(graph, node, taken, added)
        else:  # the neuron must stand before its new readers
            node.append(marker)
        node.replace_all_uses_with(marker, delete_user_cb=lambda user, marker=marker: user is not marker)
    graph.lint()
    module = torch.fx.GraphModule(model.program.module, graph)
    calibration = model.calibration
    if added:
        plan = replace(model.plan, sites=tuple(added))
        if granularities(plan, model.recipe):
            raise ConfigError(
                f"recipe {model.recipe.name} sets the thresholds of all sites together, so neurons cannot join later; "
                "convert with another recipe, such as differential"
            )
        found = calibrate(model.captured, module, plan, model.recipe, batches, max_samples=max_samples)
        calibration = replace(
            calibration,
            thresholds={**calibration.thresholds, **found.thresholds},
            levels={**calibration.levels, **found.levels},
            frames={**calibration.frames, **found.frames},
        )
    return model.changed(
        program=cut(module),
        plan=replace(model.plan, sites=(*model.plan.sites, *added)),
        calibration=calibration,
        unsaved="it has neurons behind ReLUs that relu_neurons put there; save the network it was made from",
    )


def _analog_readers(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """Readers of a ReLU, behind rearrangements too, that are not neurons."""
    for user in node.users:
        if user.target in KEEPS_ALL or user.target is aten.relu.default:
            yield from _analog_readers(user)
        elif not ops.is_site(user):
            yield user


def _new_site(graph: torch.fx.Graph, relu: torch.fx.Node, taken: set[str], added: list[Site]) -> torch.fx.Node:
    base = f"{module_path(relu) or relu.name}:relu"
    name = next(n for n in (base, *(f"{base}#{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    taken.add(name)
    with graph.inserting_after(relu):
        marker = graph.call_function(ops.site, (relu, name))
    marker.meta.update(relu.meta)
    axis, sizes = relu.meta.get("batch_axis"), relu.meta["val"].shape
    shape = tuple(None if i == axis else size for i, size in enumerate(sizes))
    added.append(Site(name, SiteKind.CONV if len(shape) > 3 else SiteKind.LINEAR, relu.name, shape, axis, ()))
    return marker
