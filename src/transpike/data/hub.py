"""Hugging Face `datasets`: a name on the Hub, or a local file or folder that it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch

from transpike.data.preprocess import Preprocess, as_it_is
from transpike.data.samples import Inputs, Label, content_digest
from transpike.errors import DataError, MissingExtra

# First match wins; pairs come first, for QNLI has (question, sentence).
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "labels", "fine_label")
_BUILDERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@final
@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a `datasets.Dataset`: an image column, or one or two text columns."""

    name: str
    classes: tuple[str, ...] | None
    rows: Any
    columns: tuple[str, ...]
    label: str | None
    preprocess: Preprocess | None
    tokenizer: Any
    max_length: int

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, i: int) -> tuple[Inputs, Label]:
        row = self.rows[i]
        label = None if self.label is None else _as_label(row[self.label], item=self.item_name(i))
        if self.preprocess is not None:
            return self.preprocess(row[self.columns[0]]), label
        texts = [row[column] for column in self.columns]
        encoded = self.tokenizer(
            *texts, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {key: value[0] for key, value in encoded.items()}, label

    def item_name(self, i: int) -> str:
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        return self._digested[0]

    def digests(self) -> tuple[str, ...]:
        return self._digested[1]

    @cached_property
    def _digested(self) -> tuple[str, tuple[str, ...]]:
        """Of all and of each row."""
        # Row by row over the columns in use: the chunks of the table underneath depend on how it was written.
        digest, each = hashlib.sha256(), []
        for row in _undecoded(self.rows, self.columns[0] if self.preprocess is not None else None):
            inputs = [_content(row[column]) for column in self.columns]
            label = [(self.label, _content(row[self.label]))] if self.label else []
            for column, content in [*zip(self.columns, inputs, strict=True), *label]:
                digest.update(f"{column}\0{len(content)}\0".encode())
                digest.update(content)
            each.append(content_digest(inputs))
        return digest.hexdigest(), tuple(each)


def open_hub(spec: str, *, preprocess: Preprocess | None, split: str, tokenizer: Any, max_length: int | None) -> Table:
    """spec: NAME or PATH, then optionally :SPLIT, or :CONFIG:SPLIT.  Without SPLIT: `split`, or the only one there is.

    An image column goes through `preprocess`; text goes through `tokenizer`, padded and cut to max_length (128).
    Raises: DataError when it cannot be loaded, has no such split, or no column that can be an input.
    """
    where, config, wanted = _parse(spec)
    rows = _choose_split(_load(where, config), wanted=wanted, split=split, where=where)
    if len(rows) == 0:
        raise DataError(f"data set {where} holds no row; choose another split")
    label = next((column for column in LABEL_COLUMNS if column in rows.column_names), None)
    names = getattr(rows.features[label], "names", None) if label else None
    classes = tuple(names) if names else None
    # A single file is always called "train" by `datasets`, whatever it holds.
    name = Path(where).name if Path(where).is_file() else f"{Path(where).name}/{rows.split or wanted or split}"
    image = _image_column(rows)
    if image is not None:
        return Table(name, classes, rows, (image,), label, preprocess or as_it_is(3), None, 0)
    columns = _text_columns(rows, where=where, label=label)
    if tokenizer is None:
        raise DataError(f"data set {where} is text ({', '.join(columns)}) and needs a tokenizer; pass tokenizer=")
    if getattr(tokenizer, "pad_token", "unknown") is None:
        raise DataError("the tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token")
    if max_length is not None and max_length < 1:
        raise DataError(f"texts of {max_length} tokens hold nothing; give a max_length of at least 1")
    return Table(name, classes, rows, columns, label, None, tokenizer, max_length or 128)


def _parse(spec: str) -> tuple[str, str | None, str | None]:
    if Path(spec).exists():  # a path may contain a colon
        return spec, None, None
    where, *rest = spec.rsplit(":", 1) if Path(spec.rsplit(":", 1)[0]).exists() else spec.split(":")
    if not where or len(rest) > 2:
        raise DataError(
            f"'datasets:{spec}' is not understood; write datasets:NAME[:SPLIT] or datasets:NAME:CONFIG:SPLIT"
        )
    return where, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def _load(where: str, config: str | None) -> Any:
    """A Dataset or a dict of them, by split."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "text", "reading datasets:NAME") from error
    path = Path(where)
    try:
        if path.is_file():
            if path.suffix.lower() not in _BUILDERS:
                raise DataError(f"{path} is not one of {', '.join(_BUILDERS)}; convert it to one of them")
            return datasets.load_dataset(_BUILDERS[path.suffix.lower()], data_files=str(path), split="train")
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(where, config)
    except DataError:
        raise
    except Exception as error:  # network, missing configuration, broken file: any type
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"data set {where} cannot be loaded ({reason}); check the name, or the path") from error


def _choose_split(loaded: Any, *, wanted: str | None, split: str, where: str) -> Any:
    if not isinstance(loaded, dict):
        # One file, or one saved Dataset: whoever names a split of it is mistaken about what it holds.
        if wanted is not None and wanted != str(loaded.split):
            raise DataError(f"data set {where} has no splits, so none called {wanted!r}; leave it out")
        return loaded
    if (wanted or split) in loaded:
        return loaded[wanted or split]
    if wanted is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    known = ", ".join(map(str, loaded))
    raise DataError(f"data set {where} has the splits {known}, not {wanted or split!r}; choose one of them")


def _image_column(rows: Any) -> str | None:
    return next((key for key, kind in rows.features.items() if type(kind).__name__ == "Image"), None)


def _text_columns(rows: Any, *, where: str, label: str | None) -> tuple[str, ...]:
    strings = [key for key, kind in rows.features.items() if getattr(kind, "dtype", "") in {"string", "large_string"}]
    texts = [key for key in strings if key != label]
    for columns in TEXT_COLUMNS:
        if set(columns) <= set(texts):
            return columns
    if len(texts) == 1:
        return (texts[0],)
    raise DataError(
        f"data set {where} has the columns {', '.join(rows.column_names)}, none of which is an image or known as text; "
        "rename the input column to image, sentence or text"
    )


def _as_label(value: Any, *, item: str) -> Label:
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, int) for v in value):
        return torch.tensor(value, dtype=torch.int64)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise DataError(f"{item} has the label {value!r}, which is not a class index; map the labels to 0, 1, 2, ...")


def _undecoded(rows: Any, image: str | None) -> Any:
    if image is None:
        return rows
    import datasets

    return rows.cast_column(image, datasets.Image(decode=False))


def _content(value: Any) -> bytes:
    if isinstance(value, dict) and "bytes" in value:  # an image: its bytes, or a file that holds them
        return value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return repr(value).encode()
