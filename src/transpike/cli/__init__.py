"""The command line: the only room that prints or exits. One file per command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

from ..errors import ConfigError, ProcessError, TranspikeError, is_out_of_memory
from ..group import ALONE, join, leave
from . import compare, convert, demo, evaluate, export, inspect, layers, literal, tune
from .console import no_logs, remark, silence

# The base of all complaints about arguments; typer brings its own copy of click in some versions.
UsageError: Any = typer.BadParameter.__mro__[2]

INTERRUPTED = 130  # as shells have it: 128 + SIGINT

app = typer.Typer(
    help="Turn a pretrained model, unedited, into a spiking neural network without training, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("inspect")(inspect.inspect)
app.command("convert")(convert.convert)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("demo")(demo.demo)
app.command("layers")(layers.layers)
app.command("literal")(literal.literal)
app.command("tune")(tune.tune)
app.add_typer(export.app, name="export")


def _version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"transpike {__version__}")
        raise typer.Exit


DIVIDED = ("convert", "eval")  # the commands that several processes can do together


@app.callback()
def common(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Turn a pretrained model, unedited, into a spiking neural network without training, and measure it."""
    if context.invoked_subcommand not in DIVIDED and join() != ALONE:
        raise ConfigError(f"transpike {context.invoked_subcommand} runs in one process; start it without a launcher")


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Where there are several processes, one speaks for all, and what one raises ends all."""
    group = join()
    if not group.main:
        silence()
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        group.tell(error)
        raise


def _part(code: int) -> int:
    """Wait until all processes are done, then leave and end; with 2 where another one failed meanwhile. Returns where
    there is only one."""
    import torch.distributed

    if not torch.distributed.is_initialized() or code == INTERRUPTED:  # who was interrupted may owe an exchange
        return code
    group = join()
    for _ in range(2):  # the second time for the process that failed, which still has to say why
        try:
            group.exchange(None)
            break
        except ProcessError:
            code = code or 2
    with contextlib.suppress(RuntimeError):  # of a process that is gone already
        leave()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # the threads of a communication library sometimes abort a Python that is shutting down


def _refuse(message: str) -> int:
    remark(f"error: {message.partition(chr(10))[0]}")  # torch.fx adds its own lines to what passes through it
    return 2


def _misused(error: Any) -> int:
    where = error.ctx.command_path if getattr(error, "ctx", None) else "transpike"
    message = error.format_message()
    if "\n" in message:  # the help, shown when nothing was asked
        remark(message)
        return 2
    return _refuse(f"{message[:1].lower()}{message[1:].rstrip('.')}; {where} --help explains the options")


def _close_output() -> None:
    """So that Python, leaving, does not try again to write what could not be written."""
    with contextlib.suppress(OSError, ValueError):  # a stand-in, as in tests, is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause, also where a library was caught half imported and stumbled over itself."""
    while error is not None and not isinstance(error, (typer.Abort, KeyboardInterrupt)):
        error = error.__cause__ or error.__context__
    return error is not None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 1 done but the target of `tune` not reached, 2 wrong input or use (one
    sentence says what), 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        with no_logs(), _together():
            code = app(args=words, prog_name="transpike", standalone_mode=False, obj=["transpike", *words])
            sys.stdout.flush()
    except TranspikeError as error:
        code = _refuse(str(error))
    except typer.Exit as error:
        code = error.exit_code
    except UsageError as error:
        code = _misused(error)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _close_output()
        code = 1
    except OSError as error:
        code = _refuse(f"cannot read or write {error.filename or 'the output'}: {error.strerror or error}")
        _close_output()
    except (typer.Abort, KeyboardInterrupt, Exception) as error:
        if is_out_of_memory(error):
            code = _refuse(f"out of memory ({str(error).partition(chr(10))[0]}); lower --batch-size, or --steps")
        elif not _interrupted(error):
            raise
        else:
            code = INTERRUPTED
    if code == INTERRUPTED:  # typer may have made an exit of it
        remark("interrupted")
    if arguments is None:
        sys.exit(_part(code or 0))
    return int(code or 0)
