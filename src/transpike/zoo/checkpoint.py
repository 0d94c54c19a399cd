"""Weights into a module: everything is verified before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from transpike.errors import CheckpointError
from transpike.zoo import hf_models
from transpike.zoo.misfit import Misfit, listed, misfit_error
from transpike.zoo.weight_files import read_tensors

PREFIXES = ("module.", "model.")


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file, folder or sharded index into `model`, in place and strictly.

    A prefix "module." or "model." that all names share is removed when the names fit without it. Tensors that are tied
    in the model need be stored once. On an error the model is as it was.

    Raises: CheckpointError if the file is missing, corrupt, pickled, of another architecture, or not finite.
    """
    stored = read_tensors(Path(path))
    targets = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if any(target.is_meta for target in targets.values()):
        raise CheckpointError(f"{type(model).__name__} is on the meta device and cannot hold weights; build it on cpu")
    tensors = _fitting(stored, model, targets, path)
    cast = {name: tensor.to(targets[name].dtype) for name, tensor in tensors.items() if name in targets}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if bad := [name for name, tensor in cast.items() if not _is_sound(tensor, parameter=name in parameters)]:
        raise CheckpointError(f"{path} holds NaN or Inf in {listed(bad)}; use a checkpoint from before it diverged")
    with torch.no_grad():
        for name, tensor in cast.items():
            targets[name].copy_(tensor)


def check_finite(model: nn.Module) -> None:
    """Check that a model holds numbers: finite parameters, and buffers without NaN or +Inf (-Inf is a usual mask).

    Raises: CheckpointError, naming the tensors.
    """
    named = [(name, tensor, True) for name, tensor in model.named_parameters()]
    named += [(name, tensor, False) for name, tensor in model.named_buffers()]
    if empty := [name for name, tensor, _ in named if tensor.is_meta]:
        raise CheckpointError(
            f"{type(model).__name__} has no values in {listed(empty)} (meta device); load its weights first"
        )
    if bad := [name for name, tensor, parameter in named if not _is_sound(tensor, parameter=parameter)]:
        raise CheckpointError(
            f"{type(model).__name__} holds NaN or Inf in {listed(bad)}; use weights from before it diverged"
        )


def _is_sound(tensor: Tensor, *, parameter: bool) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # the 8-bit types have no comparisons
        tensor = tensor.float()
    if parameter or tensor.is_complex():
        return bool(tensor.isfinite().all())
    return not bool((tensor.isnan() | tensor.isposinf()).any())


def _fitting(
    stored: Mapping[str, Tensor], model: nn.Module, targets: Mapping[str, Tensor], path: str | Path
) -> Mapping[str, Tensor]:
    """`stored` under the names that fit the model.

    Raises: CheckpointError if there are none.
    """
    misfits = []
    for candidate in _renamings(stored):
        misfit = _misfit(candidate, model, targets)
        if not any(misfit):
            return candidate
        misfits.append(misfit)
    transformers = sys.modules.get("transformers")  # where it was never imported, the model is not of its making
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        candidate, misfit = hf_models.renamed(model, stored, path)
        if not any(misfit):  # it fits a model of this config; this one may have been edited since
            misfit = _misfit(candidate, model, targets)
        if not any(misfit):
            return candidate
        misfits.append(misfit)
    raise misfit_error(path, type(model).__name__, min(misfits, key=lambda misfit: sum(map(len, misfit))))


def _renamings(stored: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    yield stored
    while stored and (shared := [p for p in PREFIXES if all(name.startswith(p) for name in stored)]):
        stored = {name.removeprefix(shared[0]): tensor for name, tensor in stored.items()}
        yield stored


def _misfit(stored: Mapping[str, Tensor], model: nn.Module, targets: Mapping[str, Tensor]) -> Misfit:
    present = {_storage(targets[name]) for name in stored if name in targets}
    missing = [
        name
        for name, target in targets.items()
        # batch normalisation counts batches only to train
        if name not in stored and _storage(target) not in present and not name.endswith("num_batches_tracked")
    ]
    # What the constructor computes may have been stored by another version: harmless if it is the same.
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in targets}
    unexpected = [
        name
        for name, tensor in stored.items()
        if name not in targets and not (name in computed and torch.equal(tensor, computed[name].cpu()))
    ]
    mismatched = [
        f"{name}: {_form(stored[name])} in the file, {_form(target)} in the model"
        for name, target in targets.items()
        if name in stored and not _alike(stored[name], target)
    ]
    return Misfit(missing, unexpected, mismatched + _untied(stored, targets))


def _untied(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are one in the model but two different ones in the file."""
    first: dict[object, str] = {}
    untied = []
    for name in sorted(targets.keys() & stored.keys()):
        other = first.setdefault(_storage(targets[name]), name)
        if other != name and not torch.equal(stored[name], stored[other]):
            untied.append(f"{name}: differs from {other} in the file, is the same in the model")
    return untied


def _storage(tensor: Tensor) -> tuple[object, ...]:
    if not tensor.numel():
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def _alike(stored: Tensor, target: Tensor) -> bool:
    return stored.shape == target.shape and stored.is_floating_point() == target.is_floating_point()


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
