"""The fast loop: token budget and number of sequences, within seconds, tried on one replica first."""
