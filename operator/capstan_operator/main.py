"""The operator as a process: configuration in, watches, loops, lease and health port side by side, an orderly end.

Crash-only: what this process does not expect ends it with one clear line, and whoever starts it again finds it able to
go on from what the cluster says. SIGTERM ends the loops, gives the lease back and leaves everything that serves alone.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import disable_created_metrics

from capstan_operator import heap
from capstan_operator.config import OperatorConfig, read_config
from capstan_operator.errors import CapstanOperatorError, InvalidConfig
from capstan_operator.log import set_up
from capstan_operator.operation import Operation
from capstan_operator.world.kubernetes.connection import connect

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with 0 after an orderly end, 1 when something broke and 2 when the configuration is wrong."""
    options = _parser().parse_args(argv)
    try:
        config = read_config(options.config)
        key = config.key()
        set_up(config.log_level, config.log_format)
        # Creation times would be a second series beside every counter, and are in no catalogue.
        disable_created_metrics()
        heap.settle()
        asyncio.run(_operate(config, key))
    except InvalidConfig as error:
        for line in str(error).splitlines():
            print(f"capstan-operator: {line}", file=sys.stderr)
        sys.exit(2)
    except CapstanOperatorError as error:
        print(f"capstan-operator: {error}", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m capstan_operator", description="Operates InferenceDeployments in a Kubernetes cluster."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="operate until told to stop")
    default = Path("/etc/capstan/operator.yaml")
    run.add_argument("--config", type=Path, default=default, metavar="FILE", help=f"YAML; {default} if not given")
    return parser


async def _operate(config: OperatorConfig, key: bytes) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    operation = Operation(config, key, await connect())
    await operation.run(stop)
    logger.info("ended")
