"""Putting weights where a DeviceMap says, and bringing them together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.fx

from .._execute import Program, cut, fetch
from ..errors import ConfigError
from ..files import write_atomically
from ..zoo import digest
from .placing import DISK, DeviceMap, spread

Names = dict[int, str]  # by id of a parameter or buffer


@dataclass(frozen=True, eq=False)
class Dispatched:
    """A network whose weights are spread.

    whole -- the program as it was converted, in which weights on disk are placeholders (meta device). program, source
    -- the converted and the source graph, which fetch and move. sites -- the device of every site's neuron. offloaded
    -- the placeholders by the name of their tensor in `file`.
    """

    where: DeviceMap
    whole: Program
    program: Program
    source: Program
    sites: Mapping[str, torch.device]
    offloaded: Mapping[str, torch.Tensor]
    file: Path | None


def dispatched(
    whole: Program,
    captured: torch.fx.GraphModule,
    source: torch.nn.Module,
    where: DeviceMap,
    *,
    offload_folder: str | Path | None,
) -> Dispatched:
    """Put every weight of the three modules, which share them, where the map says.

    Weights for the disk are written to one safetensors file, named by their content, which is read through a memory
    map when they are needed. Raises ConfigError where the map names the disk and there is no folder, or it cannot be
    written.
    """
    roots = (source, captured, whole.module)
    names = _names(source, (captured, whole.module))
    tensors = {name: tensor for name, tensor in _tensors(roots, names) if where.place(name) == DISK}
    if tensors and offload_folder is None:
        raise ConfigError(f"device_map puts {next(iter(tensors))} on disk; name a folder with offload_folder")
    file = _written(tensors, Path(offload_folder)) if tensors and offload_folder is not None else None

    def rewritten(module: torch.fx.GraphModule) -> tuple[torch.fx.Graph, dict[str, torch.device]]:
        def named(node: torch.fx.Node) -> str | torch.device:
            tensor = fetch(module, str(node.target))
            return names.get(id(tensor), tensor.device)

        return spread(module.graph, where, named, lambda name: (from_disk, (str(file), name)))

    (graph, sites), (plain, _) = rewritten(whole.module), rewritten(captured)
    new: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(roots, names):
        new.setdefault(name, _settled(tensor, where, name))
    _swap(roots, {key: new[name] for key, name in names.items()})
    return Dispatched(
        where,
        whole,
        cut(torch.fx.GraphModule(whole.module, graph)),
        cut(torch.fx.GraphModule(captured, plain)),
        sites,
        {name: new[name] for name in tensors},
        file,
    )


def gather(found: Dispatched, captured: torch.fx.GraphModule, source: torch.nn.Module) -> Program:
    """Weights on disk in memory again; the program as it was converted."""
    whole = {id(holder): _like(holder, _read(found, name)) for name, holder in found.offloaded.items()}
    _swap((source, captured, found.whole.module), whole)
    return found.whole


def weights(found: Dispatched) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of the program as it was converted, one at a time."""
    names = {id(holder): name for name, holder in found.offloaded.items()}
    module = found.whole.module
    for name, tensor in sorted(dict([*module.named_parameters(), *module.named_buffers()]).items()):
        yield name, _read(found, names[id(tensor)]) if id(tensor) in names else tensor


def from_disk(file: str, name: str, device: torch.device) -> torch.Tensor:
    """A copy, for which pages of the file come into memory and leave it again."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            # Not the mapped pages themselves: a file aligns tensors to 8 bytes only, and then products round otherwise.
            return opened.get_tensor(name).to(device, copy=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"cannot read the offloaded weight {name} from {file}: {error}; dispatch again") from error


def _read(found: Dispatched, name: str) -> torch.Tensor:
    return from_disk(str(found.file), name, torch.device("cpu"))


def _names(source: torch.nn.Module, graphs: Sequence[torch.fx.GraphModule]) -> Names:
    """The source's names; graphs have the source as their attribute `model`. Tied weights have one."""
    names: Names = {}
    for name, tensor in (*source.named_parameters(), *source.named_buffers()):
        names.setdefault(id(tensor), name)
    known = set(names.values())
    for graph in graphs:
        for name, tensor in (*graph.named_parameters(), *graph.named_buffers()):
            if name.removeprefix("model.") in known:
                names.setdefault(id(tensor), name.removeprefix("model."))
    return names


def _tensors(roots: Sequence[torch.nn.Module], names: Names) -> Iterator[tuple[str, torch.Tensor]]:
    for root in roots:
        for _, tensor in (*root.named_parameters(), *root.named_buffers()):
            if id(tensor) in names:
                yield names[id(tensor)], tensor


def _settled(tensor: torch.Tensor, where: DeviceMap, name: str) -> torch.Tensor:
    place = where.place(name)
    device = torch.device("meta" if place == DISK else place or where.main)
    return tensor if tensor.device == device else _like(tensor, tensor.detach().to(device))


def _like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.nn.Parameter):
        return values
    return torch.nn.Parameter(values, requires_grad=tensor.requires_grad)


def _swap(roots: Sequence[torch.nn.Module], new: Mapping[int, torch.Tensor]) -> None:
    for root in roots:
        for module in root.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is not None and id(tensor) in new:
                        table[name] = new[id(tensor)]


def _written(tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"cannot offload to {folder}: it is a file; name a folder")
    path = folder / f"weights-{digest(sorted(tensors.items()))[:16]}.safetensors"
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            safetensors.torch.save_file(_apart(whole), temporary)
        except safetensors.SafetensorError as error:  # a full disk arrives as this
            raise OSError(str(error)) from error

    return write_atomically(path, write)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """No two share memory, which safetensors would refuse."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return found
