"""Spikes of a network that SpikingJelly converted, read from its neurons' outputs, and SpikingJelly's own count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.op_counter import estimate_simple_energy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle


class Spikes:
    """Sums over samples, by step: `events` -- outputs that are not zero; `units` -- their magnitudes in thresholds,
    spikes if every spike is a unit; `accumulates` -- units times the synapses that read them."""

    def __init__(self, snn: nn.Module, steps: int, *, single: bool = False) -> None:
        self.single = single  # one step in single-step mode: values are [B, ...]
        self.events, self.units, self.accumulates = (torch.zeros(steps, dtype=torch.float64) for _ in range(3))
        self.largest = 0
        self.sizes: dict[str, int] = {}
        self.hooks = list(self.installed(snn))

    def installed(self, snn: nn.Module) -> Iterator[RemovableHandle]:
        for name, module in snn.named_modules():
            if name.endswith("_sta_encoder"):
                yield module.register_forward_hook(self.encoder(name))
            elif isinstance(module, neuron.BaseNode):
                yield module.register_forward_hook(self.node(name))
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and name != "conv1":  # conv1 reads the image
                yield module.register_forward_pre_hook(self.layer)

    def __enter__(self) -> Spikes:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    @property
    def neurons(self) -> int:
        return sum(self.sizes.values())

    def by_step(self, value: Tensor) -> Tensor:
        return value[None] if self.single else value

    def add(self, name: str, count: Tensor) -> None:
        """count [T, B, ...]"""
        self.sizes[name] = count[0, 0].numel()
        self.events += summed(count != 0)
        self.units += summed(count.abs())
        self.largest = max(self.largest, int(count.abs().max()))

    def encoder(self, name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            count = self.by_step(output / module.v_threshold).round()
            self.add(name, count)
            read = count[:, :, :1] if name.startswith("encoder.ln_") else count  # the head reads the class token
            self.accumulates += fan_out(name) * summed(read.abs())

        return hook

    def node(self, name: str) -> Callable[..., None]:
        return lambda module, args, output: self.add(name, self.by_step(output).round())

    def layer(self, module: Any, args: tuple[Tensor, ...]) -> None:
        """Behind a node every non-zero value is one spike, so is a mean of spikes before the head."""
        spikes = (self.by_step(args[0]) != 0).float()
        if isinstance(module, nn.Linear):
            self.accumulates += module.out_features * summed(spikes)
            return
        ones = torch.ones_like(module.weight[:1])
        reached = F.conv2d(spikes.flatten(0, 1), ones, None, module.stride, module.padding)
        self.accumulates += module.out_channels * summed(reached.unflatten(0, spikes.shape[:2]))


def summed(values: Tensor) -> Tensor:
    """[T, ...] -> [T]"""
    return values.flatten(1).double().sum(1)


def fan_out(encoder: str) -> int:
    """Synapses that read a value of DeiT-Tiny's encoder; attention's output is only added to the residual stream."""
    if encoder.startswith("encoder.ln_"):
        return 1000
    ends = {"ln_1_sta_encoder": 3 * 192, "ln_2_sta_encoder": 768, "mlp.1_sta_encoder": 192}
    return next((synapses for end, synapses in ends.items() if encoder.endswith(end)), 0)


def own_count(model: nn.Module, inputs: Tensor, *, math_attention: bool = True) -> dict[str, Any]:
    """SpikingJelly's estimate_simple_energy for one call. Fused attention hides its products from it, and
    inference_mode everything (aten.linear is then not taken apart)."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    backends = [SDPBackend.MATH] if math_attention else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    torch.backends.mha.set_fastpath_enabled(fastpath and not math_attention)
    try:
        with sdpa_kernel(backends):
            report = estimate_simple_energy(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    energy = {f"{key}_uj": getattr(report, f"energy_{key}_pj") / 1e6 for key in ("compute", "memory", "total")}
    counts = {key: report.counts[key] for key in ("mac", "ac", "synop", "memory_access_bytes")}
    return {**counts, **energy, "warnings": list(report.warnings)}
