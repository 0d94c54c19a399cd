"""Neurons: functions from a trajectory of running means to a trajectory of running means, one file each.

A neuron is a frozen, serialisable value with one pure function

    step(state, t, mean_in, threshold) -> (state, mean_out, emitted)

which a time-step calls once, or `pulses` times for a neuron that may fire several times in it. `state` is None before
the first step and one tensor of float32 (or float64) afterwards; nothing else survives a step.
To add a neuron, add its file and its row in NEURONS.
"""

from __future__ import annotations

from .differential import Differential
from .exponential_decay import ExponentialDecay
from .few_spikes import FewSpikes
from .frame import Frame, Framed, by_ladder, framed, frames_to, own_units, plain
from .kernel import KERNELS, choose, compiled_once, compiled_trajectory, fits, one_number
from .multi_threshold import MultiThreshold
from .parallel import Parallel
from .published import PublishedMultiThreshold
from .trajectory import Neuron, advance, fire_once, require_wide, spikes_in, trajectory

NEURONS: dict[str, type[Neuron]] = {
    "multi-threshold": MultiThreshold,
    "published-multi-threshold": PublishedMultiThreshold,
    "differential": Differential,
    "few-spikes": FewSpikes,
    "exponential-decay": ExponentialDecay,
    "parallel": Parallel,
}

__all__ = [
    "KERNELS",
    "NEURONS",
    "Differential",
    "ExponentialDecay",
    "FewSpikes",
    "Frame",
    "Framed",
    "MultiThreshold",
    "Neuron",
    "Parallel",
    "PublishedMultiThreshold",
    "advance",
    "by_ladder",
    "choose",
    "compiled_once",
    "compiled_trajectory",
    "fire_once",
    "fits",
    "framed",
    "frames_to",
    "one_number",
    "own_units",
    "plain",
    "require_wide",
    "spikes_in",
    "trajectory",
]
