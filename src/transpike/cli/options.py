"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..files import read_json_file
from ..recipes import DEFAULT as DEFAULT
from ..recipes import RECIPES, Recipe, recipe_named

MOST_STEPS = 1 << 16

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="timm:NAME, hf:NAME_OR_DIR, module:factory, or digits (the embedded example)."
    ),
]
Checkpoint = Annotated[str | None, typer.Option(help="Weights to load: a .safetensors file or a folder with one.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download pretrained weights (timm, Hugging Face Hub).")]
ModelOption = Annotated[
    list[str] | None, typer.Option("--option", help="Model constructor argument, KEY=VALUE (JSON values); repeatable.")
]
RecipeName = Annotated[str, typer.Option("--recipe", help=f"Recipe: {', '.join(RECIPES)}, or a JSON file.")]
Levels = Annotated[int | None, typer.Option(help="Threshold levels per sign.")]
PercentileOption = Annotated[
    float | None, typer.Option("--percentile", help="Percentile of the thresholds, in (0, 1]: 0.9999 is 99.99 %.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Recipe argument, KEY=VALUE, e.g. symmetric=true; repeatable.")
]
FirstLayer = Annotated[str | None, typer.Option(help="First layer: analog or spiking.")]
Head = Annotated[str | None, typer.Option(help="Head: analog or spiking.")]
Analog = Annotated[list[str] | None, typer.Option(help="Module-name pattern whose layers stay analog; repeatable.")]
AllowUnknown = Annotated[
    bool,
    typer.Option("--allow-unknown", help="Run operators without a rule on running means; every report lists them."),
]
BatchSize = Annotated[int, typer.Option(help="Samples per batch.")]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", help="Simulate in parts that fit, e.g. 4GB; by default half of what is available."),
]
Device = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...; auto is CUDA where there is one, else cpu.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help='Where weights are kept: auto (accelerate), cpu, disk, a device, or JSON {"module path": device}.',
    ),
]
OffloadFolder = Annotated[
    str | None, typer.Option("--offload-folder", help="Folder for weights that --device-map keeps on disk.")
]
Precision = Annotated[
    str,
    typer.Option(help="float32; bfloat16 (autocast; neurons stay in float32); or bfloat16x3, three products each."),
]
BatchDim = Annotated[int, typer.Option(help="Dimension of the inputs that is the batch.")]
Seed = Annotated[int, typer.Option(help="Seed for drawing samples.")]
Samples = Annotated[int, typer.Option("--samples", help="Calibration samples at most.")]
Every = Annotated[int | None, typer.Option(help="Calibrate on every K-th sample, instead of --samples random ones.")]
Labels = Annotated[str, typer.Option(help="Labels of image folders: auto, prefix (NNN_name.jpg), or none.")]
Split = Annotated[str, typer.Option(help="Split of data that has several.")]
Limit = Annotated[int | None, typer.Option(help="Use a random subset of this many samples.")]
InputSize = Annotated[str | None, typer.Option(help="Preprocessing: C,H,W instead of the model's own.")]
Mean = Annotated[str | None, typer.Option(help="Preprocessing: mean per channel, comma-separated.")]
Std = Annotated[str | None, typer.Option(help="Preprocessing: standard deviation per channel, comma-separated.")]
CropPct = Annotated[float | None, typer.Option(help="Preprocessing: share of the resized image that the crop keeps.")]
Interpolation = Annotated[str | None, typer.Option(help="Preprocessing: nearest, bilinear, bicubic, ...")]
MaxLength = Annotated[
    int | None, typer.Option(help="Tokens per text; by default what the model takes, and at most 128.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No tables.")]


def key_values(pairs: list[str] | None, option: str = "--option") -> dict[str, Any]:
    """["depth=2", "name=x"] -> {"depth": 2, "name": "x"}: JSON values, other texts as they are."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes KEY=VALUE, not {pair!r}")
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def numbers(text: str | None, kind: type = float) -> tuple[Any, ...] | None:
    """ "3,224,224" -> (3, 224, 224)."""
    if text is None:
        return None
    try:
        found = tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise ConfigError(f"expected numbers separated by commas, not {text!r}")
    return found


def preprocessing(
    input_size: str | None, mean: str | None, std: str | None, crop_pct: float | None, interpolation: str | None
) -> dict[str, Any]:
    values = {
        "input_size": numbers(input_size, int),
        "mean": numbers(mean),
        "std": numbers(std),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    return {key: value for key, value in values.items() if value is not None}


def chosen_recipe(name: str, more: list[str] | None = None, **changes: Any) -> Recipe:
    """A recipe by name with the changes that were given, or one from a JSON file."""
    given = {key: value for key, value in changes.items() if not any(value is unset for unset in (None, (), False))}
    given |= key_values(more, "--set")
    if not name.endswith(".json"):
        return recipe_named(name, **given)
    if given:
        raise ConfigError(f"a recipe file decides everything; drop {', '.join(sorted(given))} or edit {name}")
    try:
        return Recipe.from_json(read_json_file(name))
    except ConfigError as error:
        raise error if name in str(error) else ConfigError(f"{name}: {error}") from error


def tuned_on(names: Iterable[str]) -> list[dict[str, Any]]:
    """What recipe files say about the samples that tuned them, which evaluation leaves out."""
    files = [read_json_file(name) for name in names if name.endswith(".json")]
    records = [file.get("tuned") for file in files if isinstance(file, dict)]
    return [record for record in records if isinstance(record, dict)]


def chosen_recipes(text: str, **changes: Any) -> dict[str, Recipe]:
    """ "ecmt,ecmt:levels=10:symmetric=true,mine.json" -> recipes under the words that name them."""
    found: dict[str, Recipe] = {}
    for item in map(str.strip, _cut(text, ",")):
        if item in found:
            raise ConfigError(f"--recipes names {item} twice; leave one out, or change a setting")
        if not item:
            raise ConfigError(f"--recipes takes names separated by commas, not {text!r}")
        name, *more = [item] if item.endswith(".json") and "=" not in item else _cut(item, ":")
        found[item] = chosen_recipe(name, more, **changes)
    return found


def _cut(text: str, at: str) -> list[str]:
    """Split where no bracket or quotation mark of a JSON value is open."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == at and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """ "1,2,4" -> (1, 2, 4), ascending. Raises ConfigError for anything but whole numbers from 1 to `MOST_STEPS`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"{option} takes whole numbers of at least 1, separated by commas, not {text!r}")
    found = tuple(sorted({int(part) for part in parts}))
    check_steps(found[-1], option)
    return found


def check_steps(steps: int, option: str = "--steps") -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"{option} must be at {'least 1' if steps < 1 else f'most {MOST_STEPS:,}'}, not {steps}")


def check_precision(precision: str) -> None:
    from .._simulate import PRECISIONS

    if precision not in PRECISIONS:
        raise ConfigError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def memory(text: str | None) -> int | None:
    """ "4GB" -> bytes."""
    from .._memory import parse_size

    try:
        return None if text is None else parse_size(text)
    except ConfigError as error:
        raise ConfigError(f"--max-memory: {error}") from error


def device(text: str, *, spread: bool = False) -> str:
    """The device that --device names. `spread`: whether --device-map places the weights; they start on the CPU then.
    A process that torchrun or accelerate started takes the GPU of its local rank. Raises: ConfigError."""
    import torch

    if spread:
        if text != "auto":
            raise ConfigError("--device and --device-map both say where weights are; name one of them")
        return "cpu"
    cuda = torch.cuda.is_available()
    if text == "auto":
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if cuda else "cpu"
    try:
        if torch.empty(0, device=text).is_meta:
            raise NotImplementedError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(f"--device {text!r} is not to be had here ({reason})") from error
    return text


def devices(text: str | None, folder: str | None) -> Any:
    """ "auto", a device, or JSON -> a device_map, checked as far as that goes without a model."""
    from .._dispatch import AUTOMATIC, DISK, asked

    check_folder("--offload-folder", folder)
    if text is None:
        if folder is not None:
            raise ConfigError("--offload-folder goes with --device-map; name both, or none")
        return None
    if text in AUTOMATIC:
        return text
    found: Any = read_json_file(text) if text.endswith(".json") else text
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--device-map {text!r} is not JSON: {error}") from error
    if DISK in asked(found).places.values() and folder is None:
        raise ConfigError(f"--device-map {text!r} puts weights on disk; name a folder with --offload-folder")
    return found


def check_mode(mode: str) -> None:
    from .._simulate import MODES

    if mode not in MODES:
        raise ConfigError(f"--mode must be one of {', '.join(MODES)}, not {mode!r}")


PREPARING = ("max_length", "input_size", "mean", "std", "crop_pct", "interpolation")
NAMED = ("labels", "split", *PREPARING)


def named(context: typer.Context, *, shared: Iterable[str] = ()) -> frozenset[str]:
    """Those options about data that were written on the command line, without those `shared` with other data, for which
    they may be."""
    asked = (name for name in NAMED if name in context.params and name not in shared)
    return frozenset(name for name in asked if given(context, (name,)))


def given(context: typer.Context, names: Iterable[str]) -> str:
    """Those of the options that were written on the command line: "--levels, --first-layer"."""
    sources = {name: context.get_parameter_source(name) for name in names}
    written = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    return ", ".join(f"--{name.replace('_', '-')}" for name in written)


def check_file(option: str, text: str | None) -> None:
    """Before the work begins: raises ConfigError where its results could not be written to this file."""
    if text is not None and (not text or (Path(text).exists() and not Path(text).is_file())):
        found = "no name" if not text else "it is a folder" if Path(text).is_dir() else "it is no regular file"
        raise ConfigError(f"cannot write {option} {text!r}: {found}; name a file")
    _check_above(option, text)


def check_folder(option: str, text: str | None) -> None:
    """Before the work begins: raises ConfigError where its results could not be written into this folder."""
    if text is not None and (not text or (Path(text).exists() and not Path(text).is_dir())):
        raise ConfigError(f"cannot write {option} {text!r}: {'it is a file' if text else 'no name'}; name a folder")
    _check_above(option, text)


def _check_above(option: str, text: str | None) -> None:
    if text is None:
        return
    above = next(parent for parent in Path(text).absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(f"cannot write {option} {text!r}: {above.name} is a file; name another folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {option} {text!r}: no permission to write to {above}; name another folder")


def check_apart(**paths: str | None) -> None:
    """Raises ConfigError where two results would be written to one file."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is not None and (first := seen.setdefault(os.path.realpath(path), name)) != name:
            raise ConfigError(f"--{first} and --{name} name the same file, {path!r}; name two")
