"""Loading pretrained models: timm, Hugging Face Transformers, a factory of the user's, the embedded digits.

No model is defined here (the digits excepted). Optional packages are imported by the function that needs them.
"""

from __future__ import annotations

from transpike.zoo.checkpoint import check_finite, load_checkpoint
from transpike.zoo.describing import describe
from transpike.zoo.example import example_inputs
from transpike.zoo.fingerprint import digest, weights_digest
from transpike.zoo.loading import build, load_model
from transpike.zoo.preprocessing import data_config, tokenizer
from transpike.zoo.source import Source

__all__ = [
    "Source",
    "build",
    "check_finite",
    "data_config",
    "describe",
    "digest",
    "example_inputs",
    "load_checkpoint",
    "load_model",
    "tokenizer",
    "weights_digest",
]
