"""The Python client of Pillion's control API. The data API is OpenAI's: use the OpenAI SDK for it.

Names are imported when they are first used, so that `pillion.sdk.errors` alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pillion.sdk.client import Pillion as Pillion
    from pillion.sdk.errors import PillionAPIError as PillionAPIError
    from pillion.sdk.errors import PillionError as PillionError

__all__ = ["Pillion", "PillionAPIError", "PillionError"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pillion.sdk.client" if name == "Pillion" else "pillion.sdk.errors"), name)
