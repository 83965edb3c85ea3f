"""Whose call it is: what the HTTP request under way has decided about EM-INF.

A context variable reaches every engine request that vLLM makes for an HTTP request, those
of beams and of streams included, and no other request.
"""

from __future__ import annotations

from contextvars import ContextVar

DECLINED: ContextVar[bool] = ContextVar("em_inf_declined", default=False)
"""Whether the request could have had EM-INF and has it off; False on a route without the
field, where the server's default applies."""
