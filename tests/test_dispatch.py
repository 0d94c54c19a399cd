"""Weights spread over devices, the CPU and the disk: the same network, placed as accelerate would."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import transpike
from transpike import ops
from transpike._dispatch import DeviceMap, chosen_map, spread
from transpike._execute import cut, fetch, run_body, run_prefix
from transpike._journal import identity
from transpike._literal import Literal
from transpike.cli import main
from transpike.errors import ConfigError, MissingExtra
from transpike.zoo.digits import load_digits, load_model

needs_accelerate = pytest.mark.skipif(
    importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed"
)
MIXED = {"": "cpu", "blocks.1": "disk", "head.weight": "disk"}


def images(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(load_digits("test")[0][:count]).float().unsqueeze(1) / 16


def convert(recipe: str = "ecmt") -> transpike.SpikingModel:
    return transpike.convert(load_model(), [images(32)], recipe)


@pytest.mark.parametrize("recipe", ["ecmt", "balanced", "mbe"])
def test_nothing_changes_but_where_weights_are(recipe: str, tmp_path: Path) -> None:
    snn, x = convert(recipe), images()
    whole = {mode: snn.simulate(x, 3, mode=mode) for mode in ("folded", "streaming")}
    source, identified = snn.source(x), identity(snn, 3, "auto")
    for device_map in ("disk", MIXED, torch.device("cpu"), "cpu:0"):
        snn.dispatch(device_map, offload_folder=tmp_path)
        for mode, expected in whole.items():
            run = snn.simulate(x, 3, mode=mode)
            assert torch.equal(run.outputs, expected.outputs)
            assert run.spikes.to_json() == expected.spikes.to_json()
        assert torch.allclose(snn.source(x), source, atol=1e-5)
        assert identity(snn, 3, "auto") == identified  # a journal goes on
    assert torch.equal(snn.to("cpu").source(x), source)
    assert torch.equal(snn.simulate(x, 3).outputs, whole["folded"].outputs)


def test_a_cast_brings_weights_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the main device: on several, no operator would find its inputs. (Meta stands for a device of its own.)"""
    monkeypatch.setattr("transpike._dispatch.device_map._check_present", lambda where: None)
    snn = convert().dispatch({"": "cpu:0", "head": "meta"})
    assert {str(weight.device) for weight in snn.source_module.parameters()} == {"cpu", "meta"}
    snn.to(torch.float64)
    for module in (snn.program.module, snn.source_module):
        assert {(str(w.device), w.dtype) for w in module.parameters()} == {("meta", torch.float64)}


def test_weights_on_disk_leave_memory(tmp_path: Path) -> None:
    snn = convert().dispatch("disk", offload_folder=tmp_path / "new")
    assert all(tensor.is_meta for tensor in (*snn.source_module.parameters(), *snn.captured.graph.parameters()))
    assert not list(snn.program.module.parameters())
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".safetensors"]
    fetching = [node for node in snn.program.body if node.meta.get("late")]
    held: set[torch.fx.Node] = set()
    most = 0

    def after(node: torch.fx.Node, values: dict[torch.fx.Node, Any]) -> None:
        nonlocal most
        held.update(set(values) & set(fetching))
        most = max(most, len(set(values) & set(fetching)))
        if node in fetching:
            assert values[node].data_ptr() % 64 == 0  # as PyTorch allocates: products round by alignment

    run_body(snn.program, run_prefix(snn.program, (images(),)), lambda marker, value: value, after)
    assert len(held) == len(fetching) > 20
    assert most == 2  # a weight and a bias


def test_a_map_may_change(tmp_path: Path) -> None:
    snn, x = convert(), images()
    expected = snn.simulate(x, 2).outputs
    for device_map in (MIXED, "disk", {"": "disk", "blocks": "cpu"}):
        assert torch.equal(snn.dispatch(device_map, offload_folder=tmp_path).simulate(x, 2).outputs, expected)
    (snn.dispatched.file).unlink()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="cannot read the offloaded weight .* dispatch again"):
        snn.simulate(x, 2)


def test_tied_weights_and_constants(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
            self.two.weight = self.one.weight
            self.register_buffer("scale", torch.rand(6), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.gelu(self.two(self.one(x)) * self.scale + torch.tensor([0.5]))
            return torch.nn.functional.linear(y, self.one.weight.t() * 2 + self.scale)

    torch.manual_seed(0)
    x = torch.randn(5, 6)
    snn = transpike.convert(Tied().eval(), [x], "ecmt")
    expected, source = snn.simulate(x, 3), snn.source(x)
    for device_map in ("disk", {"one": "disk", "two": "cpu", "scale": "disk"}):
        run = snn.dispatch(device_map, offload_folder=tmp_path).simulate(x, 3)
        assert torch.equal(run.outputs, expected.outputs) and torch.equal(snn.source(x), source)
        computed = [node for node in snn.program.body if node.meta.get("late") and node.all_input_nodes]
        assert len(computed) == 3  # t() * 2 + scale, at every use
    snn.to("cpu")
    assert snn.source_module.two.weight is snn.source_module.one.weight


def test_a_moved_network_leaves_no_device_behind() -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            place = torch.arange(6, device=x.device).to(device=x.device, dtype=x.dtype)
            return self.two(self.one(x).relu() * torch.ones(4, 6, device=x.device).tril()) + place

    x = torch.randn(3, 4, 6)
    snn = transpike.convert(Masked().eval(), [x], "ecmt").to("meta")
    output = run_body(snn.program, run_prefix(snn.program, snn.prepare(x)), lambda marker, value: value)
    assert output.is_meta and snn.source(x).is_meta and snn.captured.graph(*snn.prepare(x))[0].is_meta
    for graph in (snn.program.module.graph, snn.captured.graph.graph):
        literals = [a for node in graph.nodes for a in (*node.args, *node.kwargs.values())]
        devices = [a for a in literals if isinstance(a, torch.device)]
        assert len(devices) >= 2 and set(devices) == {torch.device("meta")}


def test_each_operator_runs_where_its_weights_are() -> None:
    """On a machine without accelerators: fake tensors refuse an operator whose operands are on two devices."""
    snn, x = convert(), images()
    where = DeviceMap({"": "cuda:0", "blocks.1": "cuda:1", "norm": "cpu", "head": "disk"})
    assert where.main == torch.device("cuda:0")
    module, read = snn.program.module, []

    def from_disk(name: str, device: torch.device) -> torch.Tensor:
        read.append(name)
        return mode.from_tensor(fetch(snn.source_module, name).detach()).to(device)

    graph, sites = spread(
        module.graph, where, lambda node: str(node.target).removeprefix("model."), lambda name: (from_disk, (name,))
    )
    assert {str(device) for site, device in sites.items() if site.startswith("blocks.1.mlp")} == {"cuda:1"}
    assert {str(device) for site, device in sites.items() if site.startswith("blocks.0")} == {"cuda:0"}
    moved = torch.fx.GraphModule(module, graph)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    seen: dict[str, torch.device] = {}
    with mode:
        for name, parameter in list(moved.named_parameters()):
            place = where.place(name.removeprefix("model."))
            fake = mode.from_tensor(parameter.detach()).to(torch.device(str(place)))
            owner, _, last = name.rpartition(".")
            moved.get_submodule(owner)._parameters.pop(last)
            setattr(moved.get_submodule(owner), last, fake)
        program = cut(moved)
        leaf = mode.from_tensor(x).to("cuda:0")

        def fire(marker: torch.fx.Node, value: torch.Tensor) -> torch.Tensor:
            seen[str(marker.args[1])] = value.device
            return value

        output = run_body(program, run_prefix(program, (leaf,)), fire)
    assert isinstance(output, FakeTensor) and output.device == torch.device("cuda:0")
    assert seen == sites
    assert read == ["head.weight", "head.bias"]
    moves = [node for node in graph.nodes if node.target is ops.move]
    assert {str(node.args[1]) for node in moves} == {"cuda:0", "cuda:1"}


def test_the_longest_path_decides() -> None:
    where = DeviceMap({"": "cpu", "blocks": "cuda:0", "blocks.1": "disk", "blocks.10": "cuda:1"})
    found = [where.place(name) for name in ("head.weight", "blocks.0.norm", "blocks.1.norm", "blocks.10", "blocks.11")]
    assert found == ["cpu", "cuda:0", "disk", "cuda:1", "cuda:0"]
    assert [str(where.runs_on(name)) for name in ("head", "blocks.1")] == ["cuda:0", "cuda:0"]
    assert [where.is_offloaded(name) for name in ("head", "blocks.0", "blocks.1")] == [True, False, True]
    assert not DeviceMap({"": "cpu"}).is_offloaded("head")


@needs_accelerate
def test_accelerate_works_a_map_out(tmp_path: Path) -> None:
    snn, x = convert(), images()
    expected = snn.simulate(x, 2).outputs
    size = sum(4 * p.numel() for p in snn.source_module.parameters())
    snn.dispatch("sequential", max_memory={"cpu": size // 2}, offload_folder=tmp_path)
    assert snn.dispatched is not None and set(snn.dispatched.where.places.values()) == {"cpu", "disk"}
    assert torch.equal(snn.simulate(x, 2).outputs, expected)
    with pytest.raises(ConfigError, match="max_memory"):
        snn.dispatch("auto", max_memory={"cpu": "lots"})


def test_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"accelerate, which is not installed; run: pip install .transpike\[dist"):
        chosen_map("auto", load_model())


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "cpu", "blocks.99": "cpu"}, "names blocks.99, which DigitsViT does not have"),
        ({"blocks": "cpu"}, "no device for cls_token, .* and . more; add them"),
        ({"": "gpu"}, "puts everything on 'gpu', which is no device"),
        ({"": "cpu", "head": 17}, "puts head on cuda:17, which this machine does not have"),
        ({"": "meta"}, "puts everything on meta, which this machine does not have"),
        ({"": "disk"}, "on disk; name a folder with offload_folder"),
        ({"": True}, "on True, which is no device"),
        ({}, "device_map must be auto"),
        (None, "device_map must be auto"),
    ],
)
def test_refused_maps(device_map: Any, message: str) -> None:
    snn = convert()
    with pytest.raises(ConfigError, match=message):
        snn.dispatch(device_map)
    assert snn.dispatched is None and snn.simulate(images(), 1).steps == 1


def test_refusals(tmp_path: Path) -> None:
    snn = convert()
    with pytest.raises(ConfigError, match="max_memory goes with"):
        snn.dispatch("cpu", max_memory={"cpu": "1GB"})
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        snn.dispatch("disk", offload_folder=tmp_path / "file")
    snn.dispatch("disk", offload_folder=tmp_path)
    for refused in (lambda: snn.save_pretrained(tmp_path / "saved"), lambda: Literal(snn)):
        with pytest.raises(ConfigError, match=r"bring them together for .*: snn.to\('cpu'\)"):
            refused()
    snn.to("cpu").save_pretrained(tmp_path / "saved")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", "digits", "--data", "digits", "--limit", "60", "--steps", "2", "--recipe", "ecmt"]
    assert main(line) == 0
    whole = capsys.readouterr().out
    for asked in ("disk", '{"": "cpu", "blocks.1": "disk"}'):
        assert main([*line, "--device-map", asked, "--offload-folder", str(tmp_path)]) == 0
        assert capsys.readouterr().out == whole
    refused = {"disk": "name a folder with --offload-folder", "{": "--device-map", "gpu": "no device"}
    for asked, message in refused.items():
        assert main([*line, "--device-map", asked]) == 2
        assert message in capsys.readouterr().err
    assert main([*line, "--offload-folder", str(tmp_path)]) == 2
    assert "--offload-folder goes with --device-map" in capsys.readouterr().err
