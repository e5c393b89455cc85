"""Several things to do of which none must keep the others from being done."""

from collections.abc import Awaitable, Callable, Iterable

from capstan_operator.errors import ApiUnavailable, WorldError

Step = Callable[[], Awaitable[object]]


async def take(steps: Iterable[Step]) -> None:
    """Take every step, whatever became of those before; raises one `WorldError` for all that went wrong.

    An API server that does not answer is not asked for the rest.
    """
    failures = []
    for step in steps:
        try:
            await step()
        except WorldError as error:
            failures.append(str(error))
            if isinstance(error, ApiUnavailable):
                break
    if failures:
        raise WorldError("; ".join(failures))
