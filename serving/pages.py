"""The pages for people."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response
from litestar.types import ControllerRouterHandler


def handlers() -> list[ControllerRouterHandler]:
    return []


def wanted_by(request: Request[Any, Any, Any]) -> bool:
    return False


def error_page(status: int, message: str) -> Response[str]:
    return Response(message, status_code=status)
