"""Where a model comes from, as a value that fits in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transpike.errors import ConfigError, ModelError

KINDS = ("timm", "hf", "factory", "digits", "owner")
FORMS = (
    "timm:NAME (a timm model), hf:FOLDER_OR_NAME (a Hugging Face model), "
    "MODULE:FACTORY (your own importable function that returns a module) or digits (the embedded example)"
)


@dataclass(frozen=True)
class Source:
    """What rebuilds an architecture: `options` are constructor keyword arguments, JSON values only.

    kind "hf" has options {"class": name of a transformers class, "config": its config as a dict}; kinds "factory" and
    "owner" (a module the user built) only name the code, which is never imported from a file.

    Raises: ConfigError if the kind is unknown or an option is not a JSON value.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a model source cannot be of kind {self.kind!r}; use one of {', '.join(KINDS)}")
        if not isinstance(self.name, str):
            raise ConfigError(f"the name of a model source must be a string, not {self.name!r}")
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"the options of model {self.name!r} must be a mapping, not {self.options!r}")
        try:
            plain = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"the options of model {self.name!r} must be JSON values: {error}") from error
        object.__setattr__(self, "options", plain)

    def to_json(self) -> dict[str, Any]:
        """The source as a JSON object."""
        return {"kind": self.kind, "name": self.name, "options": json.loads(json.dumps(self.options))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        """The source that `to_json` wrote.

        Raises: ConfigError if `data` is not such an object.
        """
        if not isinstance(data, Mapping) or not {"kind", "name"} <= set(data) <= {"kind", "name", "options"}:
            raise ConfigError(f"a model source needs the keys kind, name and options, not {data!r:.200}")
        return cls(**data)


def parse_spec(spec: str) -> tuple[str, str]:
    """The kind and name that a command-line `spec` stands for: "timm:NAME" -> ("timm", "NAME").

    Raises: ModelError, listing the forms, if it is none of them.
    """
    if spec == "digits":
        return "digits", "digits"
    prefix, colon, name = spec.partition(":")
    if colon and name and prefix in ("timm", "hf"):
        return prefix, name
    is_dotted = all(part.isidentifier() for part in prefix.split("."))
    if colon and is_dotted and name.isidentifier() and prefix not in ("timm", "hf"):
        return "factory", spec
    raise ModelError(f"{spec!r} names no model; write {FORMS}")


def reason(error: BaseException) -> str:
    """The first line of an error of another package, to quote within a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
