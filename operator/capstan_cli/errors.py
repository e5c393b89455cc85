"""What can go wrong at the command line, and the exit code of each.

    CliError           1   something failed that worked until now
    ├── InputError     2   a file or an option is wrong; nothing was started
    ├── Unreachable    4   no server answers, or it is not one that we can use
    └── ChecksFailed   3   the run ended, and one of its claims does not hold

Each message says what is wrong and what to do about it; `main` prints it as one paragraph and never a traceback.
"""


class CliError(Exception):
    """Base: `main` prints the message and exits with `exit_code`."""

    exit_code = 1


class InputError(CliError):
    """A file or an option is wrong."""

    exit_code = 2


class ChecksFailed(CliError):
    """The run ended, and one of its claims does not hold."""

    exit_code = 3


class Unreachable(CliError):
    """No server answers at the address, or it lacks what we need."""

    exit_code = 4
