"""The world on this machine: engines and gateway as child processes on loopback ports, no cluster."""

from capstan_operator.world.processes.world import ProcessesWorld

__all__ = ["ProcessesWorld"]
