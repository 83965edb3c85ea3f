"""Whose call it is: what the HTTP request under way has decided about EM-INF.

A context variable reaches every engine request that vLLM makes for an HTTP request, those
of beams and of streams included, and no other request.
"""

from __future__ import annotations

from contextvars import ContextVar

from em_inf.server.operator_settings import server_settings
from em_inf.server.report import Report

CURRENT: ContextVar[Report | None] = ContextVar("em_inf_current")
"""The report of the request; None where it has EM-INF off; not set on a route without the
field, where the server's default applies."""


def current_report() -> Report | None:
    """Where the figures of an engine request under way go; None where EM-INF is off."""
    try:
        return CURRENT.get()
    except LookupError:
        server = server_settings()
        if not server.enabled_by_default:
            return None
        return Report(server.default, server.default_preset or "default")
