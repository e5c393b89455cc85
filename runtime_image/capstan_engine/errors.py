"""The errors of the engine.

    CapstanEngineError
    ├── ModelError            the checkpoint cannot be served: names the file, tensor or field      ends the process
    │   └── UnsupportedModel  a family, rope kind or format that is not implemented
    ├── ConfigurationError    the arguments do not fit together or the machine                      ends the process
    │   └── Infeasible        the model and its cache need more memory than there is; names what would fit
    ├── EngineDead            the core has ended; every open request fails with it
    └── RequestError          one request cannot be served; others go on                            ends the request
        ├── RequestTooLarge   prompt or prompt plus output exceeds what the engine can ever hold
        └── QueueFull         too many requests wait; carries `retry_after_seconds`

A request error ends a request, every other one ends the process. `assert` is for our own invariants only.
"""


class CapstanEngineError(Exception):
    """Base of all."""


class ModelError(CapstanEngineError):
    """The checkpoint cannot be served."""


class UnsupportedModel(ModelError):
    """The checkpoint asks for something that is not implemented."""


class ConfigurationError(CapstanEngineError):
    """The arguments do not fit together or the machine."""


class Infeasible(ConfigurationError):
    """What was asked for needs more memory than there is. The text begins with `infeasible:`, which operators read."""


class EngineDead(CapstanEngineError):
    """The engine core has ended."""


class RequestError(CapstanEngineError):
    """One request cannot be served. `param` names the request field, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class RequestTooLarge(RequestError):
    """The request exceeds what this engine can ever hold."""


class QueueFull(RequestError):
    """Too many requests wait already."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
