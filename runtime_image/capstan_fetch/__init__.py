"""Brings a checkpoint from a hub or a bucket to a directory, whole and verified or not at all.

Runs before the engine, as an init container of the same pod. Knows nothing of models: to it a checkpoint is a list of
named files with sizes and checksums. The surprising idea: nothing is ever trusted because it was received. What counts
is what lies on the disk in the end, read back and hashed, and only then does it get its name.
"""
