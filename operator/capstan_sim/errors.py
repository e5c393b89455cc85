"""What a user can do wrong with the simulator."""


class SimulationError(Exception):
    """An input that cannot be simulated; the message names it and the remedy."""
