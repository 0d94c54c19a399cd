"""Processes that do one job together, as torchrun and accelerate launch start them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from .errors import MissingExtra, ProcessError, TranspikeError

PATIENCE = timedelta(hours=12)  # the longest that one process waits for another; one that ends is noticed at once


@dataclass(frozen=True)
class Group:
    """`count` processes, of which this is number `index`; number 0 prints and writes.

    Every process takes part in every exchange, in the same order. A process that fails says so in its next exchange,
    and the others fail there with its sentence. What travels is JSON and tensors of numbers, never a pickle.
    """

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        return self.index == 0

    def exchange(self, value: Any) -> list[Any]:
        """The JSON values of all processes, in their order. Raises ProcessError where one failed or is gone."""
        if self.count == 1:
            return [value]
        answers = [json.loads(text) for text in _gather(json.dumps([None, value]).encode())]
        failed = next((error for error, _ in answers if error is not None), None)
        if failed is not None:
            raise ProcessError(failed)
        return [answer for _, answer in answers]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes, on the CPU; exact for integers."""
        if self.count == 1:
            return tensor
        from accelerate import PartialState
        from accelerate.utils import reduce

        with _peers_present():
            return reduce(tensor.to(PartialState().device), "sum").cpu()

    def require_same(self, value: Any, what: str) -> None:
        """Raises ProcessError on every process where `value` is not the same on all."""
        values = self.exchange(value)
        odd = next((index for index, other in enumerate(values) if other != values[0]), None)
        if odd is not None:
            raise ProcessError(f"process {odd} has other {what} than process 0; give every process the same")

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """What is raised inside is told to the other processes, once, and raised on."""
        try:
            yield
        except Exception as error:
            self.tell(error)
            raise

    def tell(self, error: Exception) -> None:
        if self.count == 1 or isinstance(error, ProcessError) or getattr(error, "told", False):
            return
        sentence = str(error) if isinstance(error, TranspikeError) else f"{type(error).__name__}: {error}"
        error.told = True  # type: ignore[attr-defined]
        with contextlib.suppress(ProcessError):
            _gather(json.dumps([sentence, None]).encode())


ALONE = Group()


def join() -> Group:
    """The group this process was started in, or `ALONE`. What accelerate has joined already stays as it is.

    Raises: MissingExtra when there are several processes and accelerate is not installed.
    """
    if os.environ.get("WORLD_SIZE", "1") in ("", "1") or "RANK" not in os.environ:
        return ALONE
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtra("accelerate", "distributed", "running in several processes") from error
    plain = not torch.distributed.is_initialized() or torch.distributed.get_backend() == "gloo"
    with _peers_present():
        state = PartialState(cpu=plain, timeout=PATIENCE)
    return Group(state.process_index, state.num_processes)


def leave() -> None:
    """End the group that `join` joined."""
    from accelerate import PartialState

    PartialState().destroy_process_group()


def _gather(content: bytes) -> list[bytes]:
    """Bytes of every process, in order; shorter ones are padded on the way."""
    from accelerate import PartialState
    from accelerate.utils import gather

    device = PartialState().device
    with _peers_present():
        lengths = gather(torch.tensor([len(content)], device=device)).tolist()
        padded = bytearray(content.ljust(max(lengths)))
        rows = gather(torch.frombuffer(padded, dtype=torch.uint8)[None].to(device)).cpu()
    return [row[:length].numpy().tobytes() for row, length in zip(rows, lengths, strict=True)]


@contextlib.contextmanager
def _peers_present() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        names = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
        raise ProcessError(
            f"the processes of this run cannot find each other ({names}); start it with torchrun or accelerate launch, "
            "or unset these variables"
        ) from error
    except RuntimeError as error:  # torch.distributed says nothing more specific
        raise ProcessError(
            "another process of this run ended without a word; see what it printed, then start again"
        ) from error
