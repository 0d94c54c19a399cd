"""One thread per test process: the models are tiny, and processes side by side use the cores better than threads."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
