"""Fleets that do not exist, under traffic that need not have been: planning by the code that serves."""
