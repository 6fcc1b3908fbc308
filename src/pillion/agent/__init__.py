"""The process beside an engine: starts it, watches it, loads and unloads, says what is resident."""

from pillion.agent.command import run

__all__ = ["run"]
