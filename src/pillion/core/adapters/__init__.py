"""LoRA adapters as files: the safetensors header, PEFT's config, a base's module shapes, and verification.

Pure: bytes and parsed JSON in, facts or one `AdapterInvalidError` with every reason out. Reads headers only,
never weights.
"""
