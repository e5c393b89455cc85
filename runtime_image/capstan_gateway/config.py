"""The configuration in force: one value that is replaced as a whole while the gateway runs.

Knows neither requests nor replicas. Who needs it asks for it when a request arrives and takes what is in force then;
a request keeps the class that it came with.

The surprising idea: what belongs to the process (address, ports, processors) is not taken from a later configuration.
Whoever started the process chose these, and whoever configures it need not know them.
"""

from typing import Final

from capstan_api.engine_args import GatewayArgs
from capstan_gateway.classes import ClassTable

PROCESS_FIELDS: Final = ("host", "port", "admin_port", "cpus")
"""Fields that stay as they were at the start."""


class LiveConfig:
    """What the gateway goes by now."""

    def __init__(self, args: GatewayArgs) -> None:
        """Raises ValueError when the classes cannot be told apart."""
        self.args = args
        self.classes = ClassTable(args.served_model_names, args.slo_classes)

    def replace(self, args: GatewayArgs) -> None:
        """Go by `args` from now on. Raises ValueError as at the start, and then nothing has changed."""
        classes = ClassTable(args.served_model_names, args.slo_classes)
        self.args = args.model_copy(update={name: getattr(self.args, name) for name in PROCESS_FIELDS})
        self.classes = classes
