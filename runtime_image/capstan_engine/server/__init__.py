"""The HTTP face of the engine: OpenAI-compatible API, admin port, metrics, and the life of the front end process.

Speaks to the engine core through `EngineClient` only; touches no tensor.
"""
