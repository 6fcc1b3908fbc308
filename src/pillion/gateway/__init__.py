"""The data path: one URL in front of engines and control. Imports core alone."""

from pillion.gateway.config import GatewayConfig, Limits
from pillion.gateway.server import run, serve

__all__ = ["GatewayConfig", "Limits", "run", "serve"]
