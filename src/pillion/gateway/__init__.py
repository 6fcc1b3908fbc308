"""The data path: one URL in front of engines and control. Imports core alone."""

from pillion.core import COMPILED

if COMPILED is not None:
    __path__.insert(0, str(COMPILED / "gateway"))

from pillion.gateway.config import GatewayConfig, Limits
from pillion.gateway.server import run, serve

__all__ = ["GatewayConfig", "Limits", "run", "serve"]
