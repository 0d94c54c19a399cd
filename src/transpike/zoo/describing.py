"""Finding out how a module that somebody built can be rebuilt: guess, rebuild, compare."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from transpike.errors import TranspikeError
from transpike.zoo import hf_models
from transpike.zoo.loading import build
from transpike.zoo.source import Source

# How to compute, not what.
IRRELEVANT = frozenset(
    {
        "training",
        "_compiled_call_impl",
        "fused_attn",
        "grad_checkpointing",
        "gradient_checkpointing",
        "_gradient_checkpointing_func",
        "name_or_path",
    }
)


def describe(model: nn.Module) -> Source:
    """The source that rebuilds the architecture of `model`, or one of kind "owner" that only names its class.

    A source is given only if what it builds has the same modules, settings, tensor names, shapes and types, and the
    same values in buffers that a state_dict leaves out.
    """
    remembered = getattr(model, "_transpike_source", None)
    if isinstance(remembered, Source) and remembered.kind in ("factory", "owner"):
        return remembered
    guesses = itertools.chain([remembered] if isinstance(remembered, Source) else [], _guesses(model))
    target = _signature(model)
    with torch.random.fork_rng(devices=[]):  # constructors draw random weights
        for source in guesses:
            built = _built(source)
            if built is not None and _signature(built) == target and _same(_computed(built), _computed(model)):
                return source
    return Source("owner", f"{type(model).__module__}.{type(model).__qualname__}")


def _guesses(model: nn.Module) -> Iterator[Source]:
    if type(model).__module__ == "transpike.zoo.digits":
        yield Source("digits", "digits", _dtype(model))
    transformers = sys.modules.get("transformers")  # where it was never imported, no model is of its making
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        try:
            yield hf_models.source_of(model, str(model.name_or_path or type(model).__name__))
        except TranspikeError:
            return
    elif (timm := sys.modules.get("timm")) is not None:
        yield from _timm_guesses(model, timm)


def _timm_guesses(model: Any, timm: Any) -> Iterator[Source]:
    facts = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if not isinstance(facts, dict) or not timm.is_model(facts.get("architecture") or ""):
        return
    architecture = facts["architecture"]
    tagged = f"{architecture}.{facts.get('tag')}"
    name = tagged if tagged in timm.list_models(f"{architecture}*", pretrained=True) else architecture
    given = getattr(model, "_model_args", None)  # newer versions of timm remember the arguments
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    extras = {"num_classes": getattr(model, "num_classes", None), "img_size": size and list(size)}
    extras = {key: value for key, value in extras.items() if value is not None}
    always = _channels(model) | _dtype(model)
    tried = []
    for base in ([given] if isinstance(given, dict) else []) + [{}]:
        for count in range(len(extras) + 1):
            for keys in itertools.combinations(extras, count):
                for more in ({}, always):
                    options = {**base, **{key: extras[key] for key in keys}, **more}
                    if options not in tried:
                        tried.append(options)
                        yield from _timm_source(name, options)


def _timm_source(name: str, options: dict[str, Any]) -> Iterator[Source]:
    try:
        yield Source("timm", name, options)
    except TranspikeError:  # an argument that is not JSON, such as a class of layers
        return


def _channels(model: nn.Module) -> dict[str, Any]:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return {} if first is None or first.in_channels == 3 else {"in_chans": first.in_channels}


def _dtype(model: nn.Module) -> dict[str, Any]:
    first = next(model.parameters(), None)
    return {} if first is None or first.dtype is torch.float32 else {"dtype": str(first.dtype).removeprefix("torch.")}


def _built(source: Source) -> nn.Module | None:
    """The architecture, without memory for its weights where its constructor runs without them."""
    for how in (_weightless, contextlib.nullcontext):
        with contextlib.suppress(Exception), how():  # a guess that the constructor refuses is not the user's error
            model = build(source)
            if not any(buffer.is_meta for buffer in model.buffers()):  # computed where a weight is
                return model
    return None


@contextlib.contextmanager
def _weightless() -> Iterator[None]:
    """Parameters go to the meta device as they are registered; buffers have their values."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is there already may be tied
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _computed(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that only the constructor fills."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether they hold the same values, in whichever type of number."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu().double(), other[name].cpu().double()) for name in one
    )


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """What two modules of the same architecture share; the settings tell apart what repr does not, such as heads."""
    tensors = {key: (value.shape, value.dtype) for key, value in model.state_dict().items() if hasattr(value, "shape")}
    return repr(model), tensors, [(name, type(module), _settings(module)) for name, module in model.named_modules()]


def _settings(module: nn.Module) -> dict[str, Any]:
    own = {key: value for key, value in vars(module).items() if key not in IRRELEVANT}
    settings = {key: value for key, value in own.items() if _is_plain(value) and not key.startswith("_")}
    # A hook, or a method put on one instance, is code that no constructor brings back.
    code = {key: _named(value) for key, value in own.items() if callable(value)}
    return settings | code | {"hooked": bool(module._forward_hooks or module._forward_pre_hooks)}


def _named(code: Any) -> str:
    kind = code if hasattr(code, "__qualname__") else type(code)
    return f"{getattr(kind, '__module__', None)}.{kind.__qualname__}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float | str)
