"""The slow loop: how many replicas, between which bounds, and how a budget of accelerators is shared."""
