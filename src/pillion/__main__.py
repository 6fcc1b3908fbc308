"""`python -m pillion` is `pillion`."""

from pillion.main.entry import run

run()
