"""Bytes a run needs, and how many samples fit into a budget.

What a folded run holds at a time follows from the graph: the shape of every value, when it is last read, and what a
neuron adds (its output, and one byte a neuron and step for each mask of who fired). docs/speed.md holds the estimate
against measured peaks.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.utils._pytree as pytree

from . import ops
from ._execute import Program
from .errors import ConfigError
from .multi_basis import SUBSTITUTES
from .neurons import Framed, Neuron, plain
from .neurons.trajectory import CHUNK
from .ops.multiply import ELEMENTWISE

if TYPE_CHECKING:
    from ._model import SpikingModel

aten = torch.ops.aten
SHARE = 0.5  # of what is available, where nobody sets a budget: the rest is for the kernels' own buffers and others
OVERHEAD = 64 << 20  # a neuron's temporaries and the libraries' buffers, whatever the batch
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
# Return their argument, or a view of it, though their schema does not say so.
SAME = (aten.dropout.default, aten.feature_dropout.default, aten.to.dtype, aten.to.device, aten.type_as.default)
APPROXIMATIONS = frozenset(SUBSTITUTES.values())
MATMULS = (aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default)
# Of the C library's heap: blocks that are free but too small or too far apart to use again. Measured (docs/speed.md):
# folded up to 1.9, and 3.2 with counting, whose masks are a quarter as large as everything else; streaming up to 4.4.
SCATTERED = {"folded": 2.5, "counting": 4.0, "streaming": 5.0}
WIDTH = 4  # bytes of a neuron's state, at least
PROBE = 64  # samples at which the estimate is taken beside one
_decided: ContextVar[tuple[int | None, ...]] = ContextVar("decided", default=())


def parse_size(text: str) -> int:
    """ "4GB", "500 MB", "1.5GiB" -> bytes. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([KMGT]i?B)\s*", text, re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2].upper()])
    if size < 1:
        raise ConfigError(f"a size of memory is a number with MB or GB, such as 500MB or 4GB, not {text!r}")
    return size


def available(device: torch.device) -> int | None:
    """Bytes that a run can still have on a device, or None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        found.append(_number("/proc/meminfo", "MemAvailable:") * 1024)
    with contextlib.suppress(OSError, ValueError, IndexError):  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        cached = _number("/sys/fs/cgroup/memory.stat", "inactive_file ")
        found.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()) + cached)
    return min(found, default=None)


def _number(path: str, key: str) -> int:
    lines = Path(path).read_text().splitlines()
    return int(next((line for line in lines if line.startswith(key)), "").split()[1])


def share(device: torch.device) -> int | None:
    """Bytes a run may take where nobody sets a budget: half of what is available now, or what was `decided`."""
    if found := _decided.get():
        return found[0]
    most = available(device)
    return None if most is None else int(SHARE * most)


@contextlib.contextmanager
def decided(limit: int | None) -> Iterator[None]:
    """Within it `share` is this, whatever becomes available: how a batch is divided decides how its products round."""
    token = _decided.set((limit,))
    try:
        yield
    finally:
        _decided.reset(token)


def samples_at_once(
    model: SpikingModel,
    samples: int,
    *,
    steps: int,
    folded: bool,
    count: bool,
    budget: int | None,
    precision: str = "float32",
) -> int:
    """How many samples of a batch to simulate together: as many as fit `budget` bytes beside weights and inputs, or
    half of the memory available, evenly divided. A model that cannot run folded gets its batches as they are.

    Raises: ConfigError where not even one sample fits a given budget, or not the batch of such a model.
    """
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise ConfigError(f"max_memory must be a whole number of bytes, not {budget!r}")
    limit = share(model.device) if budget is None else budget
    if limit is None or (model.unfoldable and budget is None):
        return samples
    fixed, each = need(model, steps=steps, folded=folded, count=count, precision=precision)
    fitting = int((limit - fixed) // max(each, 1))
    if model.unfoldable:
        if samples > fitting:
            raise ConfigError(
                f"a batch of {samples} takes about {_shown(fixed + samples * each)}, which is more than the "
                f"{_shown(limit)} of max_memory, and cannot be divided ({model.unfoldable}); lower the batch size"
            )
        return samples
    if fitting < 1 and budget is not None:
        raise ConfigError(
            f"one sample takes about {_shown(fixed + each)}, which is more than the {_shown(budget)} of max_memory; "
            + ("lower steps, or use streaming mode" if folded and fixed < limit else "raise it")
        )
    fitting = max(fitting, 1)
    return samples if samples <= fitting else -(-samples // -(-samples // fitting))


def parts_that_fit(
    model: SpikingModel,
    leaves: tuple[torch.Tensor, ...],
    *,
    steps: int,
    folded: bool,
    count: bool,
    budget: int | None,
    precision: str = "float32",
) -> list[tuple[torch.Tensor, ...]]:
    """The inputs of a batch, divided as `samples_at_once` says."""
    samples = model.samples_in(leaves)
    size = samples_at_once(model, samples, steps=steps, folded=folded, count=count, budget=budget, precision=precision)
    return [leaves] if size >= samples else pieces(leaves, model.batch_axes, size)


def _shown(size: float) -> str:
    if size < 10**6:
        return f"{size / 10**3:.0f} KB"
    return f"{size / 10**9:.2f} GB" if size >= 10**9 else f"{size / 10**6:.0f} MB"


def need(model: SpikingModel, *, steps: int, folded: bool, count: bool, precision: str = "float32") -> tuple[int, int]:
    """Bytes whatever the batch, and bytes per sample, of a run of `steps` steps. The model remembers them:
    going through its graph takes as long as a small batch."""
    asked = (steps, folded, count, precision)
    if asked not in model.needs:
        model.needs[asked] = _need(model, steps, folded, count, precision)
    return model.needs[asked]


def _need(model: SpikingModel, steps: int, folded: bool, count: bool, precision: str) -> tuple[int, int]:
    remembered = count and model.recipe.product_terms == 2  # who had spoken before the step
    masks = (2 + remembered) * count
    chunk = CHUNK if folded and model.device.type == "cpu" else None
    thirds = 6 if model.device.type == "cuda" else 18  # elsewhere they are widened again, to be multiplied
    copies = {"float32": 0, "bfloat16": 2, "bfloat16x3": thirds}[precision]
    how = {"masks": masks, "neurons": model.neurons, "chunk": chunk, "copies": copies}
    one, many = (peak(model.program, batch, steps if folded else 1, **how) for batch in (1, PROBE))  # type: ignore[arg-type]
    kind = "streaming" if not folded else "counting" if count else "folded"
    scatter = SCATTERED[kind] if model.device.type == "cpu" else 1.0
    one, many = one * scatter, many * scatter
    each = (many - one) / (PROBE - 1)
    if not folded:
        each += (width(model) + remembered) * model.neurons_per_sample  # what neurons keep from step to step
        each += (steps - 1) * _bytes(model.program.result, 1)
    kept = rounded_weights(model) if precision == "bfloat16" else 0
    return OVERHEAD + kept + tables(model) + int(max(one - each, 0)), int(each)


def tables(model: SpikingModel) -> int:
    """Bytes of the tables in which neurons that fire several times in a step look up what they say."""
    dtype = torch.float64 if width(model) == 8 else torch.float32
    asked = ((plain(neuron), model.thresholds[site]) for site, neuron in model.neurons.items())
    found = [own.stairs(each, dtype, model.device) for own, each in asked if hasattr(own, "stairs")]  # type: ignore[attr-defined]
    return sum({id(table): table.nbytes for table in found if table is not None}.values())


def rounded_weights(model: SpikingModel) -> int:
    """Bytes of the weights that autocast keeps a copy of in bfloat16 while it is on."""
    weights = model.program.module.parameters()
    return 2 * sum(weight.numel() for weight in weights if weight.requires_grad and weight.dtype == torch.float32)


def width(model: SpikingModel) -> int:
    """Bytes of a neuron's state."""
    sizes = (p.dtype.itemsize for p in model.whole.module.parameters() if p.is_floating_point())
    return max([WIDTH, *sizes])


def peak(
    program: Program,
    batch: int,
    steps: int,
    *,
    masks: int = 0,
    neurons: Mapping[str, Neuron] | None = None,
    chunk: int | None = CHUNK,
    copies: int = 0,
) -> int:
    """Bytes of all values held at a time by a run of `steps` folded steps on `batch` samples, at most.

    Arguments: masks -- bytes per neuron and step that counting adds, until the neuron's last reader is done. neurons --
    by site: what they compute with depends on how often they fire in a step, and on their frames. chunk -- neurons
    handled at a time; None for all. copies -- bytes that a product allocates for each element that it reads.
    """
    prefix = sum(_bytes(node, batch) for node in program.prefix if node.op == "call_function" and not _is_view(node))
    held = sum(_bytes(node, batch * steps) for node in program.crossing if node.op != "get_attr") if steps > 1 else 0
    size, freed = batch * steps, _freed_after(program)

    def kept(node: torch.fx.Node) -> int:
        if _aliased(node) is not None:
            return 0
        return _bytes(node, size) + (masks * _elements(node, size) if ops.is_site(node) else 0)

    def beside(node: torch.fx.Node) -> int:
        if not ops.is_site(node):
            return _temporaries(node, size, copies)
        return _neuron_temporaries(node, (neurons or {}).get(str(node.args[1])), size, steps, masks > 0, chunk)

    most = held
    for node in program.body:
        held += kept(node)
        most = max(most, held + beside(node))
        held -= sum(map(kept, freed.get(node, ())))
    return prefix + most


def _freed_after(program: Program) -> dict[torch.fx.Node, list[torch.fx.Node]]:
    """By node of the body, the values made there whose memory is free behind it: it was the last to read a view."""
    owner: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in program.body:
        source = _aliased(node)
        owner[node] = node if source is None else owner.get(source, source)
    views, freed = Counter(owner.values()), dict[torch.fx.Node, list[torch.fx.Node]]()
    for node in program.body:
        for dead in program.dead_after.get(node, ()):
            root = owner[dead]
            views[root] -= 1
            if views[root] == 0 and root in owner:  # not what lies before the body
                freed.setdefault(node, []).append(root)
    return freed


def _neuron_temporaries(
    node: torch.fx.Node, neuron: Neuron | None, batch: int, steps: int, counting: bool, chunk: int | None
) -> int:
    """What a neuron allocates beside its output: what each firing of a step emits and computes with, by the chunk; the
    whole trajectory in its frame's units, and a copy where the input may not be contiguous."""
    elements, width = _elements(node, batch), max(WIDTH, _bytes(node, batch) // max(_elements(node, batch), 1))
    part = elements // steps if chunk is None else min(elements // steps, chunk)
    own, pulses = (None, 1) if neuron is None else (plain(neuron), neuron.pulses)
    held = (width * 8, 2) if hasattr(own, "at_once") else (width * (5 + pulses), 2 * pulses)  # together: no trains
    tensors = set(neuron.frame.tensors()) if isinstance(neuron, Framed) else set()
    framing = min(len(tensors), 1) + (len(tensors & {"scale", "offset"}) > 1 or len(tensors - {"offset"}) > 1)
    copied = int(_aliased(node.all_input_nodes[0]) is not None)
    return part * (held[0] + held[1] * counting) + elements * width * (framing + copied)


def _temporaries(node: torch.fx.Node, batch: int, copies: int) -> int:
    """What an operator allocates beside its output: a product `copies` bytes for each element that it reads; a matrix
    product copies of operands that are not contiguous, a linear layer its weights in three parts of two bytes; an
    approximation an index, a mask and at most five copies of its output."""
    if node.target in APPROXIMATIONS:
        return 9 * _elements(node, batch) + 5 * _bytes(node, batch)
    read = copies * sum(_elements(operand, batch) for operand in node.all_input_nodes) if _multiplies(node) else 0
    if node.target is aten.linear.default:
        return max(read, 6 * _elements(node.args[1], 1))  # type: ignore[arg-type]
    return read + sum(_bytes(operand, batch) for operand in node.all_input_nodes if node.target in MATMULS)


def _multiplies(node: torch.fx.Node) -> bool:
    return ops.factors(node) is not None and node.target not in ELEMENTWISE


def _aliased(node: torch.fx.Node) -> torch.fx.Node | None:
    """The operand whose memory a node's value is."""
    return node.all_input_nodes[0] if node.all_input_nodes and _is_view(node) else None


def _is_view(node: torch.fx.Node) -> bool:
    if node.target in SAME:
        return _width(node) == _width(node.all_input_nodes[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    named = any(argument.alias_info is not None and not argument.alias_info.is_write for argument in schema.arguments)
    return named and node.target not in (aten.reshape.default, aten.contiguous.default)


def _elements(node: torch.fx.Node, batch: int) -> int:
    return sum(_numel(leaf.shape, batch) for leaf in _tensors(node.meta.get("val")))


def _bytes(node: torch.fx.Node, batch: int) -> int:
    return sum(_numel(leaf.shape, batch) * leaf.dtype.itemsize for leaf in _tensors(node.meta.get("val")))


def _width(node: torch.fx.Node) -> int:
    return sum(leaf.dtype.itemsize for leaf in _tensors(node.meta.get("val")))


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _numel(shape: Iterable[Any], batch: int) -> int:
    total = 1
    for size in shape:
        total *= _size(size.node.expr, batch) if isinstance(size, torch.SymInt) else size
    return total


@functools.lru_cache(maxsize=4096)
def _size(expression: Any, batch: int) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def pieces(leaves: tuple[torch.Tensor, ...], axes: Iterable[int | None], size: int) -> list[tuple[torch.Tensor, ...]]:
    """The inputs of a batch in parts of `size` samples."""
    axes = tuple(axes)
    samples = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    return [
        tuple(
            leaf if axis is None else leaf.narrow(axis, start, min(size, samples - start))
            for leaf, axis in zip(leaves, axes, strict=True)
        )
        for start in range(0, samples, size)
    ]


__all__ = ["available", "need", "parse_size", "parts_that_fit", "peak", "pieces", "samples_at_once"]
