"""The errors of the operator.

    CapstanOperatorError
    ├── ModelNotFound     the model's directory does not exist in this world       shown as a condition, tried again
    ├── WorldError        a process could not be started or a file not written     shown as a condition, tried again
    ├── AdminError        an engine or gateway refused or did not answer           the next turn tries again
    │   └── Conflict      limits were changed by somebody else in between          the next turn reads them anew
    └── ScrapeError       metrics could not be read, or must not be believed       counts as missing data

None of them ends the operator: a turn that fails is reported and the next one starts from what is really there.
"""


class CapstanOperatorError(Exception):
    """Base of all. The message names the thing and, where there is one, the remedy."""


class ModelNotFound(CapstanOperatorError):
    """The model's directory does not exist in this world."""


class WorldError(CapstanOperatorError):
    """The world could not do what was asked."""


class AdminError(CapstanOperatorError):
    """An engine or gateway refused a request on its admin port, or did not answer."""


class Conflict(AdminError):
    """The version that a change was based on is no longer the current one."""


class ScrapeError(CapstanOperatorError):
    """Metrics could not be read, or are such that they must not be believed."""
