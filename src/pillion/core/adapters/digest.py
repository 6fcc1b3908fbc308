"""The digest of an adapter version (SPEC §1)."""

from __future__ import annotations

import hashlib
import re

DIGEST = re.compile(r"[0-9a-f]{64}")


def version_digest(weights_sha256: str, config: bytes) -> str:
    """SHA-256 over the weights' own SHA-256 (given as hex) and the normalised config; 64 hex digits."""
    return hashlib.sha256(bytes.fromhex(weights_sha256) + config).hexdigest()


def is_digest(text: str) -> bool:
    """Whether `text` has a digest's form, and so can be a path's part."""
    return DIGEST.fullmatch(text) is not None
