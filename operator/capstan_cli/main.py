"""The `capstan` command: its list of commands, and what a person sees of a known error.

The options of each are in commands/. Every command imports what it needs when it runs, so that `capstan --help`
answers at once.
"""

import sys

import typer

from capstan_cli.commands.bench import bench
from capstan_cli.commands.chat import chat
from capstan_cli.commands.digest import digest
from capstan_cli.commands.explain import explain
from capstan_cli.commands.fetch import fetch
from capstan_cli.commands.plan import plan
from capstan_cli.commands.simulate import simulate
from capstan_cli.commands.up import up
from capstan_cli.errors import CliError

app = typer.Typer(
    name="capstan",
    help="Serve language models within their latency objectives: an engine, an autoscaler, and what watches them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (up, bench, simulate, explain, plan, fetch, digest, chat):
    app.command()(command)


def main() -> None:
    """Entry point: a known error becomes one sentence on stderr and its exit code."""
    try:
        app()
    except CliError as error:
        print(f"capstan: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone (`capstan … | head`); say nothing more, not even at exit.
        sys.stdout = None
        sys.exit(1)
