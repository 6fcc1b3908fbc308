"""An engine without a model: vLLM's HTTP, adapters, metrics and faults, in an instant (SPEC §12)."""
