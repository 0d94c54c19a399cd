"""Which operator NIR can hold: one row each. Whatever has no row is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.fx

from .._capture import module_path
from .._execute import Program
from ..errors import ModelError
from .layers import batch_norm_as_affine, constant, foldable
from .nir_draft import Draft, Signal
from .nir_neuron import load_nir

aten = torch.ops.aten


@dataclass(frozen=True)
class Place:
    """Where a rule works: the draft, the marked graph, and the signals made so far."""

    draft: Draft
    program: Program
    signals: dict[torch.fx.Node, Signal]

    def of(self, node: Any) -> Signal | None:
        return self.signals.get(node) if isinstance(node, torch.fx.Node) else None

    def constant(self, value: Any, shape: tuple[int, ...]) -> torch.Tensor:
        """A constant operand without the batch dimension, of `shape`."""
        full = constant(self.program, value).double()
        return torch.broadcast_to(full, (1, *shape))[0]


Rule = Callable[[Place, torch.fx.Node, dict[str, Any]], Signal]


def _source(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    return place.signals[next(iter(arguments.values()))]


def _relu(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    signal = _source(place, node, arguments)
    return Signal(signal.sources, signal.shape, f"the ReLU of {module_path(node) or 'the model'}")


def _add(place: Place, node: torch.fx.Node, arguments: dict[str, Any], sign: float = 1.0) -> Signal:
    """Two signals join without a node; a constant is a shift."""
    left, right = place.of(arguments["self"]), place.of(arguments["other"])
    sign *= float(arguments.get("alpha", 1))
    if left is None:
        left = place.signals[arguments["other"]]
        if sign != 1:
            left = place.draft.scaled(node.name, left, torch.tensor(sign))
        return place.draft.shifted(node.name, left, place.constant(arguments["self"], left.shape))
    if right is None:
        return place.draft.shifted(node.name, left, sign * place.constant(arguments["other"], left.shape))
    if left.shape != right.shape:
        raise ModelError(f"adds shapes {left.shape} and {right.shape}")
    if sign != 1:
        right = place.draft.scaled(node.name, right, torch.tensor(sign))
    return left.at(*left.sources, *right.sources)


def _sub(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    return _add(place, node, arguments, -1.0)


def _neg(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    return place.draft.scaled(node.name, _source(place, node, arguments), torch.tensor(-1.0))


def _mul(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    left, right = arguments["self"], arguments["other"]
    signal, factor = (place.of(left), right) if place.of(left) is not None else (place.of(right), left)
    if signal is None or place.of(factor) is not None:
        raise ModelError("a product of two signals")
    return place.draft.scaled(node.name, signal, place.constant(factor, signal.shape))


def _div(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    signal = place.of(arguments["self"])
    if signal is None or place.of(arguments["other"]) is not None:
        raise ModelError("a quotient by a signal")
    if arguments.get("rounding_mode") is not None:
        raise ModelError("a rounded quotient")
    return place.draft.scaled(node.name, signal, 1 / place.constant(arguments["other"], signal.shape))


def _batch_norm(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    """Folded into the layer before it, or a linear layer with a diagonal matrix."""
    signal = place.signals[arguments["input"]]
    if foldable(arguments["input"]) is node:
        return signal
    gain, shift = batch_norm_as_affine(place.program, node)
    if len(signal.shape) == 1:
        return place.draft.linear(node.name, signal, torch.diag(gain), shift)
    return _pointwise(place, node, signal, torch.diag(gain), shift)


def _pointwise(
    place: Place, node: torch.fx.Node, signal: Signal, weight: torch.Tensor, bias: torch.Tensor | None = None,
    stride: tuple[int, ...] | None = None, padding: tuple[int, ...] | None = None,
) -> Signal:  # fmt: skip
    """A 1 x 1 convolution: [out, in] over the channels of [in, n] or [in, h, w]."""
    axes = len(signal.shape) - 1
    if axes not in (1, 2):
        raise ModelError(f"a tensor of {axes + 1} dimensions without the batch")
    return place.draft.conv(
        node.name, signal, weight.reshape(*weight.shape, *[1] * axes), bias,
        stride=stride or (1,) * axes, padding=padding or (0,) * axes, dilation=(1,) * axes,
    )  # fmt: skip


def _flatten(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    """Reshaping that keeps the shape, or flattens all of it; a neuron commutes with it, so a ReLU passes."""
    signal = _source(place, node, arguments)
    shape = tuple(node.meta["val"].shape[1:])
    if node.meta.get("batch_axis") != 0:
        raise ModelError("a rearrangement that moves the batch")
    if shape == signal.shape:
        return signal
    if len(shape) != 1:
        raise ModelError(f"a rearrangement of {signal.shape} to {shape}")
    return _flat(place, node.name, signal)


def _flat(place: Place, name: str, signal: Signal) -> Signal:
    made = load_nir().Flatten(input_type={"input": np.array(signal.shape)}, start_dim=0, end_dim=-1)
    size = int(np.prod(signal.shape))
    return signal.at(place.draft.add(name, made, signal.shape, *signal.sources), shape=(size,))


def _avg_pool(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    kernel = pair(arguments["kernel_size"])
    stride = pair(arguments["stride"]) if arguments["stride"] else kernel
    padding = pair(arguments["padding"])
    plain = arguments["count_include_pad"] or padding == (0, 0)
    if arguments["ceil_mode"] or arguments["divisor_override"] is not None or not plain:
        raise ModelError("average pooling with ceil_mode, divisor_override or padding that does not count")
    return _pool(place, node, place.signals[arguments["self"]], kernel, stride, padding)


def _pool(
    place: Place, node: torch.fx.Node, signal: Signal, kernel: tuple[int, ...], stride: tuple[int, ...],
    padding: tuple[int, ...] = (0, 0),
) -> Signal:  # fmt: skip
    if len(signal.shape) != 3:
        raise ModelError(f"pooling over a tensor of shape {signal.shape}")
    made = load_nir().AvgPool2d(np.array(kernel), np.array(stride), np.array(padding))
    space = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(signal.shape[1:], kernel, stride, padding, strict=True))
    return signal.at(place.draft.add(node.name, made, signal.shape, *signal.sources), shape=(signal.shape[0], *space))


def _adaptive_pool(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    signal, wanted = place.signals[arguments["self"]], pair(arguments["output_size"])
    if len(signal.shape) != 3 or any(have % want for have, want in zip(signal.shape[1:], wanted, strict=True)):
        raise ModelError(f"adaptive pooling of {signal.shape[1:]} to {wanted}")
    kernel = tuple(have // want for have, want in zip(signal.shape[1:], wanted, strict=True))
    return _pool(place, node, signal, kernel, kernel)


def _mean(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    """The mean over all of height and width is a pool as large as the image."""
    signal = place.signals[arguments["self"]]
    axes = sorted(axis % (len(signal.shape) + 1) for axis in arguments["dim"] or ())
    if len(signal.shape) != 3 or axes != [2, 3]:
        raise ModelError(f"a mean over dimensions {axes} of a tensor of {len(signal.shape) + 1}")
    pooled = _pool(place, node, signal, signal.shape[1:], signal.shape[1:])
    return pooled if arguments["keepdim"] else _flat(place, f"{node.name}:flat", pooled)


def _slice(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    """Every s-th row or column from the first: a 1 x 1 convolution with that stride."""
    signal = place.signals[arguments["self"]]
    axis, step = arguments["dim"] % (len(signal.shape) + 1), arguments["step"]
    size = 2**31 if axis == 0 else signal.shape[axis - 1]
    whole = not arguments["start"] and (arguments["end"] is None or arguments["end"] >= size)
    if whole and step == 1:
        return signal
    if not whole or axis < 2:
        raise ModelError(f"a slice of dimension {axis}")
    stride = tuple(step if i == axis else 1 for i in range(2, len(signal.shape) + 1))
    return _pointwise(place, node, signal, torch.eye(signal.shape[0]), stride=stride)


def _pad(place: Place, node: torch.fx.Node, arguments: dict[str, Any]) -> Signal:
    """Zero channels before and after, and zeros around the image: a 1 x 1 convolution."""
    signal, pads = place.signals[arguments["self"]], list(arguments["pad"])
    axes = len(signal.shape) - 1
    pads += [0] * (2 * axes + 4 - len(pads))
    around = [(pads[2 * i], pads[2 * i + 1]) for i in range(axes)][::-1]
    before, after = pads[2 * axes : 2 * axes + 2]
    uneven = any(one != other for one, other in around) or min(pads) < 0 or any(pads[2 * axes + 2 :])
    if arguments.get("mode", "constant") != "constant" or arguments.get("value") or uneven:
        raise ModelError(f"padding {pads}")
    weight = torch.zeros(signal.shape[0] + before + after, signal.shape[0])
    weight[before : before + signal.shape[0]] = torch.eye(signal.shape[0])
    return _pointwise(place, node, signal, weight, padding=tuple(one for one, _ in around))


def pair(value: Any) -> tuple[int, ...]:
    """PyTorch's way with windows: one number, or one per axis."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * 2 if len(values) == 1 else values


PASSES_RELU: dict[object, Rule] = {
    aten.relu.default: _relu,
    **dict.fromkeys((aten.flatten.using_ints, aten.reshape.default, aten.view.default), _flatten),
    **dict.fromkeys((aten.dropout.default, aten.clone.default, aten.contiguous.default, aten.alias.default), _source),
    **dict.fromkeys((aten.detach.default, aten.feature_dropout.default), _source),
}
RULES: dict[object, Rule] = {
    **PASSES_RELU,
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
    aten.neg.default: _neg,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.batch_norm.default: _batch_norm,
    aten.avg_pool2d.default: _avg_pool,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.mean.dim: _mean,
    aten.slice.Tensor: _slice,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
