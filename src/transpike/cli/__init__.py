"""The command line: the only room that prints or exits. One file per command."""

from __future__ import annotations

import os
import sys

import typer

from ..errors import TranspikeError
from . import convert, demo, evaluate, inspect, layers
from .console import errors

# The base of all complaints about arguments; typer brings its own copy of click in some versions.
UsageError = typer.BadParameter.__mro__[2]

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
app.command("demo")(demo.demo)
app.command("layers")(layers.layers)


def _version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"transpike {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Turn a pretrained model, unedited, into a spiking neural network without training, and measure it."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Exit codes: 0 done, 2 wrong input or use (one sentence says what), 130 interrupted."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except TranspikeError as error:
        message = str(error).partition("\n")[0]  # torch.fx adds its own lines to what passes through it
        errors.print(f"error: {message}", markup=False, highlight=False, soft_wrap=True)
        code = 2
    except typer.Exit as error:
        code = error.exit_code
    except UsageError as error:
        error.show()
        code = 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (typer.Abort, KeyboardInterrupt):
        errors.print("interrupted")
        code = 130
    if arguments is None:
        sys.exit(code or 0)
    return int(code or 0)
