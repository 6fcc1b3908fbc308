"""The data path: one URL in front of engines and control. Imports core alone."""

from pillion.gateway import compiled

if (_directory := compiled.found()) is not None:
    __path__.insert(0, str(_directory))
    compiled.use(_directory)

from pillion.gateway.config import GatewayConfig, Limits
from pillion.gateway.server import run, serve

__all__ = ["GatewayConfig", "Limits", "run", "serve"]
