"""The simulator: a fleet of engines in simulated time, driven by the real control law or by any other policy.

Only two things are imitated: how many seconds a step takes (`step_time`) and how long a pod needs until it is ready.
Scheduling follows the engine's own rule, decisions come from the operator's own `decide`.
"""
