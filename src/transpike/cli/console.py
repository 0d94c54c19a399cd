"""Where the command line writes: results to standard output, progress and remarks to standard error."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
import rich.text

output = rich.console.Console()
errors = rich.console.Console(stderr=True)


HOUR = 3600.0  # batches this far apart still give a rate


class Rate(rich.progress.ProgressColumn):
    """Samples per second or, where that is below 1, per minute."""

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return rich.text.Text("")
        return rich.text.Text(f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min")


def silence() -> None:
    """Print nothing from here on."""
    output.file = errors.file = io.StringIO()


def remark(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def show(table: object) -> None:
    """A table as it is: at the terminal's width, or whole when the output is piped."""
    if output.is_terminal:
        output.print(table)
    else:
        output.file.write(f"{table}\n\n")


def _bar() -> rich.progress.Progress:
    """A bar with rate and time left on a terminal; nothing elsewhere."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        Rate(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    return rich.progress.Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, speed_estimate_period=HOUR
    )


@contextlib.contextmanager
def progress(label: str, total: int, *, resumes: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar for one stage. Yields a function that takes the samples done; those of its first call were done before, and
    count for neither rate nor time left. `resumes`: say how many."""
    with _bar() as bar:
        task = bar.add_task(label, total=total, start=False)

        def advance(done: int) -> None:
            if bar.tasks[task].started:
                bar.update(task, completed=done)
                return
            bar.reset(task, completed=done)
            if resumes and done:
                remark(f"{done} of {total} samples were done before")

        yield advance


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage. Yields a function that takes the stage, what is done and of how many."""
    with _bar() as bar:
        tasks: dict[str, rich.progress.TaskID] = {}

        def advance(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=of)
            bar.update(tasks[stage], completed=done, total=of)

        yield advance


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Libraries log what they then raise, with tracebacks; the command line says it once, in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class Failures:
    """Samples that could not be read: said as they happen, kept for the report."""

    def __init__(self) -> None:
        self.items: list[dict[str, str]] = []

    def __call__(self, item: str, error: Exception) -> None:
        text = str(error)
        self.items.append({"item": item, "error": text})
        remark(f"skipped: {text}" if text.startswith(item) else f"skipped {item}: {text}")

    def count(self) -> str:
        return "1 sample" if len(self.items) == 1 else f"{len(self.items)} samples"
