"""The runner turns a step's plan into tensors, runs the model and draws the tokens."""
