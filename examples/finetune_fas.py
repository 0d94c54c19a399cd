"""Fine-tune a small Hugging Face model so that few time-steps are enough, then convert it with the recipe `fas`.

    python prepare_stories.py S OUT --training 512
    python finetune_fas.py OUT/stories260k OUT/fas --data OUT/stories_training.npz --held-out OUT/stories.npz

FOLDER is a model folder (config.json, model.safetensors); DATA an .npz with x, the token ids, and for a classifier y.
What reads an activation, which is where `fas` puts neurons, reads it rounded meanwhile, to L levels of each sign up to
a trained threshold (the QCFS activation of train_qcfs.py, straight through). With --relu the model's activation is ReLU
from then on, as published: what is left is QCFS in its place. Writes to OUT:

    model             the fine-tuned model, a folder like FOLDER that anything loads
    thresholds.json   by site, the trained threshold
    snn               the converted network, at these thresholds

and prints, of the held-out samples, the loss and how often the prediction is that of FOLDER. Nothing is downloaded.
See docs/fas.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import transpike
from train_qcfs import QCFS
from transpike import Recipe, SiteChoice, Threshold
from transpike.errors import DataError, MissingExtra, ModelError
from transpike.files import put_json, read_json_file, write_json, write_together
from transpike.recipes import fas
from transpike.zoo import load_model
from transpike.zoo.weight_files import read_tensors

ACTIVATION = ("hidden_act", "activation_function", "hidden_activation", "activation")
Samples = dict[str, Tensor]


class Signed(nn.Module):
    """QCFS of either sign with one threshold: what neurons with one level emit of a constant in L steps."""

    def __init__(self, threshold: float, levels: int) -> None:
        super().__init__()
        self.rounding = QCFS(levels)
        nn.init.constant_(self.rounding.threshold, threshold)

    def forward(self, z: Tensor) -> Tensor:
        return self.rounding(z) - self.rounding(-z)


def read(path: Path) -> Samples:
    """x as int64 [N, length], and y where the file has one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: torch.from_numpy(stored[name].astype(np.int64)) for name in ("x", "y") if name in stored}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no .npz of token ids ({error}); prepare_stories.py writes one") from error
    if "x" not in found or found["x"].dim() != 2:
        raise DataError(f"{path} has no x of two dimensions (samples x tokens); prepare_stories.py writes one")
    return found


def with_relu(folder: Path, to: Path) -> Path:
    """The same model in another folder, its activation function changed to ReLU."""
    config = read_json_file(folder / "config.json")
    found = [key for key in ACTIVATION if isinstance(config.get(key), str)]
    if not found:
        raise ModelError(f"{folder / 'config.json'} names no activation function ({', '.join(ACTIVATION)})")
    changed, tensors = {**config, **dict.fromkeys(found, "relu")}, read_tensors(folder)
    path, weights = to / "config.json", to / "model.safetensors"
    write_together(
        {
            weights: lambda temporary: save_file(tensors, temporary, {"format": "pt"}),
            path: lambda temporary: put_json(temporary, changed, called=path),
        }
    )
    return to


def labels_of(model: nn.Module, samples: Samples) -> Tensor:
    """The tokens themselves for a causal language model, which shifts them; else y."""
    if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return samples["x"]
    if "y" not in samples:
        raise DataError(f"{type(model).__name__} is no causal language model, so its data need labels y")
    return samples["y"]


def at_thresholds(recipe: Recipe, thresholds: Mapping[str, float]) -> Recipe:
    return replace(recipe, patterns={s: SiteChoice(threshold=Threshold(t, t)) for s, t in thresholds.items()})


def convert(model: nn.Module, x: Tensor, recipe: Recipe) -> transpike.SpikingModel:
    return transpike.convert(model, [{"input_ids": part} for part in x.split(16)], recipe)


@contextmanager
def rounded(model: nn.Module, x: Tensor, levels: int) -> Iterator[dict[str, Signed]]:
    """The rounding in front of every layer that reads a site of `fas`, by site, first at the threshold of least error.
    They are parts of the model until the end."""
    snn = convert(model, x, fas(granularity="tensor", steps=levels))
    modules, hooks = {layer.name: layer.module for layer in snn.plan.layers}, []
    found = {site.name: Signed(snn.thresholds[site.name].positive, levels) for site in snn.plan.sites}
    for site in snn.plan.sites:
        for layer in dict.fromkeys(name for name, _ in site.reads):
            reader = model.get_submodule(modules[layer])
            hooks.append(reader.register_forward_pre_hook(lambda _, args, f=found[site.name]: (f(args[0]), *args[1:])))
    model.fas_roundings = nn.ModuleList(found.values())
    yield found
    for hook in hooks:
        hook.remove()
    del model.fas_roundings


def finetune(model: nn.Module, samples: Samples, trainer_dir: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Train weights and thresholds with the roundings in place; the model is changed. Returns: thresholds by site."""
    try:
        import accelerate  # noqa: F401 -- the trainer asks for it
        from transformers import Trainer, TrainingArguments
    except ImportError as error:
        raise MissingExtra("accelerate", "distributed", "fine-tuning with transformers.Trainer") from error
    arguments = TrainingArguments(
        str(trainer_dir), max_steps=asked.steps, per_device_train_batch_size=asked.batch_size, seed=asked.seed,
        save_strategy="no", report_to=[], use_cpu=True, logging_steps=max(asked.steps // 5, 1), disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": x, "labels": y} for x, y in zip(samples["x"], labels_of(model, samples), strict=True)]
    with rounded(model, samples["x"][: asked.samples], asked.levels) as roundings:
        thresholds = [rounding.rounding.threshold for rounding in roundings.values()]
        weights = [p for p in model.parameters() if all(p is not threshold for threshold in thresholds)]
        groups = [{"params": weights, "lr": asked.rate}, {"params": thresholds, "lr": asked.threshold_rate}]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        Trainer(model, arguments, train_dataset=rows, optimizers=(optimiser, None)).train()  # type: ignore[arg-type]
    model.eval()
    return {site: abs(rounding.rounding.threshold.item()) for site, rounding in roundings.items()}


@torch.no_grad()
def logits_of(model: nn.Module | transpike.SpikingModel, x: Tensor, steps: int = 0) -> Tensor:
    if isinstance(model, nn.Module):
        return torch.cat([model(input_ids=part).logits for part in x.split(16)])
    runs = (model.simulate({"input_ids": part}, steps, count=False) for part in x.split(16))
    return torch.cat([run.outputs[-1] for run in runs])


def judged(logits: Tensor, source: Tensor, labels: Tensor) -> str:
    """Loss and agreement, over all tokens but the first for a language model."""
    if labels.shape == logits.shape[:2]:
        logits, source, labels = logits[:, :-1], source[:, :-1], labels[:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()).item()
    same = (logits.argmax(-1) == source.argmax(-1)).float().mean().item()
    return f"{loss:10.4f}{100 * same:14.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--data", type=Path, required=True, help="fine-tunes and calibrates")
    parser.add_argument("--held-out", type=Path, required=True, help="what the numbers are of")
    parser.add_argument("--steps", type=int, default=300, help="of training; 0 leaves the model as it is")
    parser.add_argument("--levels", type=int, default=8, help="L, the levels of the rounding while training")
    parser.add_argument("--relu", action="store_true", help="ReLU in place of the model's activation function")
    parser.add_argument("--time-steps", type=int, nargs="+", default=[4, 8], help="T of the network in spikes")
    parser.add_argument("--rate", type=float, default=9e-5, help="learning rate of the weights")
    parser.add_argument("--threshold-rate", type=float, default=5e-3, help="learning rate of the thresholds")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--samples", type=int, default=64, help="of the data, to calibrate with")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    samples, held_out = read(asked.data), read(asked.held_out)
    folder = with_relu(asked.folder, asked.out / "model") if asked.relu else asked.folder
    original, model = (load_model(f"hf:{name}")[0] for name in (asked.folder, folder))
    thresholds = finetune(model, samples, asked.out / "trainer", asked) if asked.steps else {}
    model.save_pretrained(asked.out / "model")
    write_json(asked.out / "thresholds.json", thresholds)
    few = samples["x"][: asked.samples]
    x, labels = held_out["x"], labels_of(model, held_out)
    source = logits_of(original, x)
    print(f"{'':32}{'T':>4}{'loss':>10}{'agreement %':>14}")
    for name, each in (("source", original), ("fine-tuned" if asked.steps else "to be converted", model)):
        print(f"{name:32}{'':4}{judged(logits_of(each, x), source, labels)}", flush=True)
    for steps in asked.time_steps:
        for options in ({"granularity": "tensor"}, {}, {"shifts": True}, {"granularity": "neuron"}):
            snn = convert(model, few, at_thresholds(fas(steps=steps, **options), thresholds))
            name = " ".join(f"{key}={value}" for key, value in options.items())
            print(f"fas {name:28}{steps:4}{judged(logits_of(snn, x, steps), source, labels)}", flush=True)
    snn = convert(model, few, at_thresholds(fas(granularity="tensor", steps=asked.time_steps[-1]), thresholds))
    snn.save_pretrained(asked.out / "snn")


if __name__ == "__main__":
    main()
