"""What things are and what may happen to them. No I/O, no clock of its own, no framework."""
