"""The normal form of an exported graph: one graph, attention split, no in-place operator on a signal, and every node
knows its module path and where its batch is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.node import map_aggregate

from .errors import CaptureError
from .ops import attention, move

aten = torch.ops.aten
REGION = torch.ops.higher_order.wrap_with_set_grad_enabled


def module_path(node: torch.fx.Node) -> str:
    """The path of the innermost module a node came from, as in `model.named_modules()`; "" for the model itself."""
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        if path == "model" or path.startswith("model."):
            return path.removeprefix("model").removeprefix(".").split("@")[0]
    return ""


def normalise(module: torch.fx.GraphModule) -> None:
    graph = module.graph
    while regions := [node for node in graph.nodes if node.target is REGION]:  # one may lie in another
        for region in regions:
            _inline(module, region)
    for node in list(graph.nodes):
        if node.op == "call_module" or (node.op == "call_function" and _only_asserts(node)):
            graph.erase_node(node)
    for node in list(graph.nodes):
        if node.target is aten.view.default:  # our neurons return other strides than the module they stand in
            node.target = aten.reshape.default
        _drop_in_place(node)
        if attention.is_fused(node):
            _split_attention(node)
    graph.eliminate_dead_code()
    if "_guards_fn" in dict(module.named_children()):
        del module._guards_fn
    graph.lint()
    module.recompile()


def _inline(module: torch.fx.GraphModule, region: torch.fx.Node) -> None:
    """Put the operators of a region, which has its own setting for gradients, in its place."""
    _, body, *given = region.args
    inner = module.get_submodule(body.target).graph  # type: ignore[union-attr, arg-type]
    known = dict(zip((node for node in inner.nodes if node.op == "placeholder"), given, strict=True))
    with module.graph.inserting_before(region):
        for node in inner.nodes:
            if node.op == "output":
                results = torch.fx.map_arg(node.args[0], known.__getitem__)
            elif node.op != "placeholder":
                known[node] = module.graph.node_copy(node, known.__getitem__)
                if node.op == "get_attr":
                    known[node].target = f"{body.target}.{node.target}"  # type: ignore[union-attr]
    for item in list(region.users):
        item.replace_all_uses_with(results[item.args[1]])
        module.graph.erase_node(item)
    module.graph.erase_node(region)


def _only_asserts(node: torch.fx.Node) -> bool:
    name = str(node.target)
    return not node.users and ("_assert" in name or "sym_constrain" in name)


def _drop_in_place(node: torch.fx.Node) -> None:
    """Replace `x.add_(y)` by `x + y` for all later readers of x, where x is not a view somebody else holds."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not schema.name.endswith("_") or not node.args:
        return
    target = node.args[0]
    family = getattr(aten, schema.name.removeprefix("aten::")[:-1], None)
    overload = getattr(family, node.target._overloadname, None) if family is not None else None
    if overload is None or not isinstance(target, torch.fx.Node) or _shares_memory(target, node):
        return
    node.target = overload
    later = {user for user in target.users if user is not node and _comes_after(user, node)}
    target.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)


def _shares_memory(target: torch.fx.Node, writer: torch.fx.Node) -> bool:
    """Whether a live value also sees what is written to `target`: a view of something still read, or with views."""
    base = target
    while base.op == "call_function" and _is_view(base):
        base = base.args[0]
        if any(_comes_after(user, writer) for user in base.users if user is not writer):
            return True
    if target.op in ("placeholder", "get_attr"):
        return True
    return any(
        _is_view(user) and any(_comes_after(u, writer) for u in user.users) and not _comes_after(user, writer)
        for user in target.users
        if user is not writer
    )


def _is_view(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)


def _comes_after(node: torch.fx.Node, other: torch.fx.Node) -> bool:
    return other < node


def _split_attention(node: torch.fx.Node) -> None:
    def emit(target: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        new = node.graph.call_function(target, args, kwargs)
        new.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        with mode, enable_python_dispatcher():  # without it `matmul` asks for sizes as numbers, and pins the batch
            new.meta["val"] = target(*pytree.tree_map_only(torch.fx.Node, lambda n: n.meta["val"], args), **kwargs)
        return new

    mode = node.meta["val"].fake_mode
    with node.graph.inserting_before(node):
        try:
            last = attention.split(node, emit)
        except ValueError as error:
            raise CaptureError(
                f"{module_path(node) or 'the model'}: {error}; call model.eval() before converting"
            ) from error
    node.replace_all_uses_with(last)
    node.graph.erase_node(node)


def retarget(node: torch.fx.Node, swap: Callable[[Any], Any]) -> None:
    """Replace the literals of a call, such as the device and dtype that the source had when it was captured; a move to
    a device stays what it is."""
    if node.op == "call_function" and node.target is not move:
        node.args, node.kwargs = map_aggregate(node.args, swap), map_aggregate(node.kwargs, swap)


def redirect(node: torch.fx.Node, device: torch.device) -> None:
    """Let a call make and put tensors on another device than the source had them when it was captured."""
    retarget(node, lambda argument: device if isinstance(argument, torch.device) else argument)


def locate_batch(module: torch.fx.GraphModule, axes: list[int | None]) -> None:
    """Write on every node where its batch is: `batch_axis` for tensors (None: no batch), `batch_scaled` for sizes.

    The axis is the one whose symbolic size contains the batch symbol; a node with two such axes gets -1. Raises:
    CaptureError if the batch has become a number.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    first = next(i for i, axis in enumerate(axes) if axis is not None)
    symbol = _expression(placeholders[first].meta["val"].shape[axes[first]])
    if symbol is None or not symbol.free_symbols:
        raise CaptureError("the batch lost its symbol after torch.export; please report this with the version of torch")
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            node.meta["batch_axis"] = _batch_axis(value.shape, symbol)
        elif isinstance(value, torch.SymInt):
            node.meta["batch_scaled"] = _expression(value) is not None and symbol in _expression(value).free_symbols


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else None


def _batch_axis(shape: Any, symbol: Any) -> int | None:
    axes = [
        i for i, size in enumerate(shape) if _expression(size) is not None and symbol in _expression(size).free_symbols
    ]
    if not axes:
        return None
    return axes[0] if len(axes) == 1 else -1
