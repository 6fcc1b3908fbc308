"""What things are and what may happen to them. No I/O, no clock of its own, no framework."""

from pillion.core import compiled

COMPILED = compiled.load()
if COMPILED is not None:
    __path__.insert(0, str(COMPILED / "core"))
