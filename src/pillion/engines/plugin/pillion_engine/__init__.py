"""Pillion's part of an engine: what runs inside the engine's own Python environment.

The server starts an engine with this package's parent directory on `PYTHONPATH`, so the code always
matches the server's version and nothing is installed into the engine's environment.
"""

__version__ = "0.1.0"
