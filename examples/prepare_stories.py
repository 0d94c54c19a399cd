"""Turn the shared stories260K model into a Hugging Face folder, and its sample text into token windows.

    python examples/prepare_stories.py DATA_DIR OUT_DIR

Writes OUT_DIR/stories260k (config.json, model.safetensors: a LlamaForCausalLM), stories.npz (x: 64 tokens of the five
stories; y: the token that follows the last, -100 elsewhere) and stories_calibration.npz (64 tokens each, drawn from the
model itself, so that no evaluated text calibrates). With --training N also stories_training.npz, N more of these.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from prepare_shared import as_npz, write

WINDOW = 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 64,
    "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": True, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip


def half_split(weight: Tensor, head_size: int = 8) -> Tensor:
    """Rows of a query or key projection from interleaved rotary pairs (0, 1), (2, 3) to halves (0, 4), (1, 5)."""
    return weight.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def llama_weights(path: Path) -> dict[str, Tensor]:
    """The stacked weights under the names of LlamaForCausalLM."""
    stacked = load_file(path)
    found = {"model.embed_tokens.weight": stacked["emb"], "model.norm.weight": stacked["norm"]}
    names = {
        "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
        "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj", "an": "input_layernorm",
        "fn": "post_attention_layernorm",
    }  # fmt: skip
    for short, name in names.items():
        for i, weight in enumerate(stacked[short]):
            rotated = half_split(weight) if short in ("wq", "wk") else weight.contiguous()
            found[f"model.layers.{i}.{name}.weight"] = rotated
    return found


def vocabulary(path: Path) -> tuple[list[bytes], list[float]]:
    """Pieces and scores of a tokenizer file: int32 longest, then float32 score, int32 length, bytes for each piece."""
    content, place = path.read_bytes(), 4
    pieces, scores = [], []
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place)
        pieces.append(content[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    return pieces, scores


def encode(text: str, pieces: list[bytes], scores: list[float]) -> list[int]:
    """Byte-pair encoding: the beginning of a sequence, then the pair of best score merged until none is left."""
    number = {piece: i for i, piece in enumerate(pieces)}
    tokens = [number[b" "]]
    for letter in text:
        code = letter.encode()
        tokens += [number[code]] if code in number else [byte + 3 for byte in code]
    while True:
        pairs = [(number.get(pieces[a] + pieces[b]), i) for i, (a, b) in enumerate(zip(tokens, tokens[1:]))]  # noqa: B905
        merges = [(scores[merged], -i, merged) for merged, i in pairs if merged is not None]
        if not merges:
            return [1, *tokens]
        _, place, merged = max(merges)
        tokens[-place : -place + 2] = [merged]


def windows(stories: list[list[int]], stride: int) -> dict[str, np.ndarray]:
    """64 tokens from every 16th place of a story, or by another stride; only the token behind them is asked for."""
    starts = [(story, start) for story in stories for start in range(0, len(story) - WINDOW, stride)]
    x = [story[start : start + WINDOW] for story, start in starts]
    y = [[-100] * (WINDOW - 1) + [story[start + WINDOW]] for story, start in starts]
    return {"x": np.array(x, np.int64), "y": np.array(y, np.int64)}


@torch.no_grad()
def drawn(folder: Path, count: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Token sequences that the model itself tells, one token after the other at temperature 1."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.ones(count, 1, dtype=torch.int64)
    while tokens.shape[1] < WINDOW:
        p = model(tokens).logits[:, -1].softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], 1)
    return {"x": tokens.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--training", type=int, default=0, metavar="N", help="sequences to train with")
    parser.add_argument("--stride", type=int, default=16, metavar="N", help="tokens from one window to the next")
    asked = parser.parse_args()
    if asked.stride < 1 or asked.training < 0:
        parser.error("--stride must be at least 1, and --training at least 0")
    source, folder = asked.data_dir / "stories260k", asked.out_dir / "stories260k"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "config.json", json.dumps(CONFIG, indent=2).encode())
    write(folder / "model.safetensors", save(llama_weights(source / "stories260k.safetensors"), {"format": "pt"}))
    pieces, scores = vocabulary(source / "tokenizer.bin")
    text = (source / "tinystories_sample.txt").read_text(encoding="utf-8")
    stories = [encode(story.strip(), pieces, scores) for story in text.split("<|endoftext|>") if story.strip()]
    write(asked.out_dir / "stories.npz", as_npz(windows(stories, asked.stride)))
    write(asked.out_dir / "stories_calibration.npz", as_npz(drawn(folder)))
    if asked.training:
        write(asked.out_dir / "stories_training.npz", as_npz(drawn(folder, asked.training, seed=1)))
    print(f"{folder}, stories.npz ({len(stories)} stories, {sum(map(len, stories))} tokens), stories_calibration.npz")


if __name__ == "__main__":
    main()
