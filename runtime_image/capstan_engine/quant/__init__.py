"""Quantization: what the linear layers are stored as, in a checkpoint and in memory; one file for each format."""
