"""Calibration: from a few unlabelled samples to thresholds, in the order of its files.

observe -- what samples show of every site: histograms, sensitivity, what groups of neurons see. range, allocate, fine,
sequential -- thresholds of one site, of all together, of single neurons, of one site after the other. settle -- the
divergence they are to keep. calibrate -- the verb.
"""

from __future__ import annotations

from .calibrate import Calibration, calibrate, given, measured
from .observe import Observed, Progress, batch_size, observe

__all__ = ["Calibration", "Observed", "Progress", "batch_size", "calibrate", "given", "measured", "observe"]
