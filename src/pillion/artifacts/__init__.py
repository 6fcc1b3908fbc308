"""Adapter and model bytes: received, verified and kept by digest; fetched to nodes; imported from a hub."""
