"""Pillion: many LoRA adapters on a few running base models, through one OpenAI-compatible URL."""

__version__ = "0.1.0"
