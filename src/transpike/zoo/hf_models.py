"""Hugging Face Transformers: folders and names to modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transpike.errors import CheckpointError, ConfigError, ModelError
from transpike.zoo.hf_configs import attention_of, config_object, import_transformers, read_config, safe_config
from transpike.zoo.misfit import Misfit, misfit_error
from transpike.zoo.source import Source, reason
from transpike.zoo.timm_models import torch_dtype
from transpike.zoo.weight_files import read_tensors


def load(folder: Path, options: Mapping[str, Any], *, with_weights: bool = True) -> nn.Module:
    """The model of a folder, in float32 unless options["config"] names another "dtype".

    options: "class" (default: the config's architecture, else AutoModel's choice) and "config" (values that override
    the folder's). The file may hold more than that class needs, such as another head, but not less.

    Raises: ModelError, CheckpointError, ConfigError, MissingExtra.
    """
    transformers = import_transformers(f"the model hf:{folder}")
    overrides = options.get("config", {})
    if not set(options) <= {"class", "config"} or not isinstance(overrides, Mapping):
        raise ConfigError(
            f"hf:{folder} takes the options 'class' (a name) and 'config' (an object), not {dict(options)!r:.200}"
        )
    raw = read_config(folder)
    architectures = [options["class"]] if "class" in options else raw.get("architectures") or []
    model_class = _model_class(architectures[0]) if architectures else transformers.AutoModel
    config = config_object(model_class, raw, dtype=str(overrides.get("dtype", "float32")))
    _override(config, overrides, folder)
    if not with_weights:
        return _construct(model_class, config)
    tensors = read_tensors(folder)
    if not architectures:
        with torch.device("meta"):
            model_class = type(_construct(model_class, config))
    model, misfit = _filled(model_class, config, tensors, folder)
    if misfit.missing or misfit.mismatched:
        raise misfit_error(folder, model_class.__name__, misfit)
    return model


def build(options: Mapping[str, Any]) -> nn.Module:
    """The architecture that options {"class", "config"} describe, with random weights.

    Raises: ModelError if it is not a model class of transformers or the config does not suit it; MissingExtra.
    """
    config = options.get("config")
    if set(options) != {"class", "config"} or not isinstance(config, Mapping):
        raise ModelError(f"a Hugging Face model is rebuilt from 'class' and 'config', not from {sorted(options)}")
    model_class = _model_class(options["class"])
    return _construct(model_class, config_object(model_class, config, dtype=str(config.get("dtype") or "float32")))


def source_of(model: Any, name: str) -> Source:
    """The source of a PreTrainedModel: its class and config, and how it computes attention.

    Raises: ConfigError if its config holds what is not a JSON value.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    asked = attention_of({"attn_implementation": getattr(model.config, "_attn_implementation", None)})
    config = safe_config(model.config.to_dict() | {"dtype": dtype}, dtype) | asked
    return Source("hf", name, {"class": type(model).__name__, "config": config})


def renamed(model: Any, tensors: Mapping[str, Tensor], path: str | Path) -> tuple[Mapping[str, Tensor], Misfit]:
    """`tensors` under the names that a PreTrainedModel has in memory: on disk they may be those of earlier versions.

    Raises: CheckpointError if transformers cannot make sense of them.
    """
    filled, misfit = _filled(type(model), model.config, tensors, path)
    return filled.state_dict(), misfit


def _model_class(name: Any) -> Any:
    transformers = import_transformers("this model")
    found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ModelError(
            f"transformers {transformers.__version__} has no model class {name!r}; "
            "upgrade it, or load the model yourself"
        )
    return found


def _override(config: Any, overrides: Mapping[str, Any], folder: Path) -> None:
    for key, value in overrides.items():
        if not hasattr(config, key):
            raise ConfigError(f"the config of hf:{folder} ({type(config).__name__}) has no {key!r} to override")
        if key != "dtype":
            setattr(config, key, value)


def _construct(model_class: Any, config: Any) -> nn.Module:
    ambient = torch.get_default_dtype()
    torch.set_default_dtype(torch_dtype(config.dtype))
    try:
        with _quiet():
            # Only AutoModel has from_config: it chooses the class.
            return (getattr(model_class, "from_config", None) or model_class)(config)
    except Exception as error:  # whatever a constructor of theirs raises
        raise ModelError(f"{model_class.__name__} refuses the config ({reason(error)}); correct it") from error
    finally:
        torch.set_default_dtype(ambient)


def _filled(model_class: Any, config: Any, tensors: Mapping[str, Tensor], path: str | Path) -> tuple[nn.Module, Misfit]:
    """A new model with `tensors` in it; transformers is given no path, so that it opens no file of its own choice."""
    try:
        with _quiet():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                # Copies: the tensors of a file are mapped, and would change, or crash, when it is written over.
                state_dict={name: tensor.clone() for name, tensor in tensors.items()},
                dtype=torch_dtype(config.dtype),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # whatever a constructor or a conversion of theirs raises
        raise CheckpointError(
            f"{path} does not load into {model_class.__name__} ({reason(error)}); "
            "save it again with this version of transformers, or name another class"
        ) from error
    mismatched = [
        f"{name}: {list(stored)} in the file, {list(own)} in the model"
        for name, stored, own in sorted(map(tuple, info["mismatched_keys"]))
    ]
    return model, Misfit(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), mismatched)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither bars nor advice on the terminal: what matters of it is raised."""
    logging = import_transformers("this model").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
