"""Control's metrics, for the operator. The gateway's own are at /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response

from pillion.api.auth import Ctl, Operator
from pillion.control import metrics

router = APIRouter(tags=["admin"])


@router.get(
    "/v1/admin/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def control_metrics(control: Ctl, caller: Operator) -> Response:
    """In Prometheus' text format."""
    return Response(await metrics.page(control), media_type=metrics.CONTENT_TYPE)
