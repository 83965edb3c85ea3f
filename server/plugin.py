"""The endpoint plugin: our routes, and our overrides of vLLM's.

An override parses the body with our request model, calls vLLM's own handler, and adds
`em_inf` to what comes out. vLLM keeps authentication, cancellation, errors and the rest.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from typing import Any

import fastapi
import vllm
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.exception_handling.error_response import (
    create_error_response,
)

from em_inf.logits_processors.settings import METHOD_FIELDS, settings_of_method
from em_inf.server import metrics
from em_inf.server.current import CURRENT
from em_inf.server.engine_client import EMInfEngineClient
from em_inf.server.operator_settings import server_settings
from em_inf.server.playground import add_playground
from em_inf.server.report import Report
from em_inf.server.requests import (
    REQUEST_MODELS,
    EMInfRequestMixin,
    EMInfResponsesRequest,
    refuse_em_inf,
)
from em_inf.server.responses import add_to_event_stream, add_to_json, add_to_stream
from em_inf.server.tracing import tracer

ROUTES_WITHOUT_MODEL = (
    "/invocations",
    "/inference/v1/generate",
    "/cohere/v2/chat",
    "/generative_scoring",
    "/v1/systemone",
)
"""Routes that sample with the server's default and have no field for settings."""

Handler = Callable[[Any, Request], Awaitable[Any]]


class EMInfPlugin:
    """What vLLM's endpoint-plugin interface asks for."""

    name = "em_inf"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Register our routes; those that vLLM has already are replaced by ours."""
        router = APIRouter(route_class=_Route)
        for route in list(app.routes):
            if isinstance(route, APIRoute) and "POST" in route.methods:
                model = REQUEST_MODELS.get(route.path)
                if model is not None:
                    _override(router, route, model)
                elif route.path in ROUTES_WITHOUT_MODEL:
                    _refuse_field(router, route)
        router.add_api_route("/v1/em_inf", describe_server, methods=["GET"])
        if server_settings().playground:
            add_playground(router)
        app.include_router(router)

    async def init_state(
        self,
        engine_client: Any,
        state: State,
        args: Namespace,  # noqa: ARG002
    ) -> None:
        """Put our engine client in place, and make sure that the processor is loaded."""
        if engine_client is None:
            return
        traced = tracer() if await engine_client.is_tracing_enabled() else None
        proxy = EMInfEngineClient(engine_client, state, traced)
        await proxy.start()
        for handler in holders(state, engine_client):
            handler.engine_client = proxy
        state.em_inf_engine_client = proxy
        # vLLM's launcher takes it from here, to shut it down.
        state.engine_client = proxy
        status = proxy.processor_status
        metrics.INFO.labels(
            version("em-inf"),
            vllm.__version__,
            status["runner"],
            status["backend"],
            status["device"],
        ).set(1)


def holders(state: State, engine_client: Any) -> list[Any]:
    """What on the application's state makes engine requests of its own.

    All handlers of vLLM do so through an attribute `engine_client`; a contract test fails
    where one comes to have another way.
    """
    values = state._state.values()
    return [x for x in values if getattr(x, "engine_client", None) is engine_client]


class _Route(APIRoute):
    """A route that says in OpenAI's form, too, that a body cannot be parsed at all."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler; of its errors only the unparsable body is ours."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                if error.status_code != 400 or error.__cause__ is None:
                    raise
                nested = isinstance(error.__cause__, RecursionError)
                reason = "it is nested too deeply" if nested else "it is not valid JSON"
                body = create_error_response(
                    f"body: the request cannot be read: {reason}", param="body"
                )
                return JSONResponse(body.model_dump(), status_code=400)

        return guarded


def _refuse_field(router: APIRouter, core: APIRoute) -> None:
    """Have a route of vLLM's that takes the server's default refuse our field."""
    router.add_api_route(
        core.path,
        core.endpoint,
        methods=["POST"],
        name=core.name,
        dependencies=[*core.dependencies, Depends(refuse_em_inf)],
        responses=core.responses,
    )


def _override(router: APIRouter, core: APIRoute, model: type[BaseModel]) -> None:
    handler: Handler = core.endpoint

    async def endpoint(request: Any, raw_request: Any) -> Any:
        report = None
        if isinstance(request, EMInfRequestMixin):
            report = request.em_inf_report
            CURRENT.set(report)
        response = await handler(request, raw_request)
        if report is not None and report.settings.report != "none":
            await _add_report(request, response, report)
        return response

    # What FastAPI reads to parse the body.
    endpoint.__annotations__ = {"request": model, "raw_request": Request}
    endpoint.__name__ = handler.__name__
    router.add_api_route(
        core.path,
        endpoint,
        methods=["POST"],
        name=core.name,
        dependencies=core.dependencies,
        responses=core.responses,
    )


async def _add_report(request: Any, response: Response | None, report: Report) -> None:
    """Add the figures to a response that has any to show."""
    one_choice = isinstance(request, EMInfResponsesRequest)
    if isinstance(response, StreamingResponse):
        add = add_to_event_stream if one_choice else add_to_stream
        response.body_iterator = add(response.body_iterator, report)  # type: ignore[arg-type]
    elif isinstance(response, JSONResponse) and response.status_code == 200:
        await add_to_json(response, report, one_choice)


async def describe_server(raw_request: Request) -> dict[str, Any]:
    """Version, runner, backend, default settings, presets, fields with their ranges.

    Also which fields each method reads, and what the server's logprobs are.

    An answer proves that the engine answered within the last second, or does now; what
    never changes is said from memory. While the server is stopping it is a 503.
    """
    client = raw_request.app.state.em_inf_engine_client
    if client.is_stopping:
        raise fastapi.HTTPException(503, "the server is shutting down")
    try:
        await client.check_alive()
    except Exception as error:
        reason = f"the engine does not answer: {error}"
        raise fastapi.HTTPException(503, reason) from error
    server = server_settings()
    status = client.processor_status
    model = client.model_config
    return {
        "version": version("em-inf"),
        "vllm_version": vllm.__version__,
        "runner": status["runner"],
        "backend": status["backend"],
        "device": status["device"],
        "enabled_by_default": server.enabled_by_default,
        "default_settings": server.default.model_dump(),
        "limits": {"max_grad_steps": server.max_grad_steps},
        "presets": {
            name: settings_of_method(settings)
            for name, settings in server.presets.items()
        },
        "fields": server.allowed_values(),
        "methods": METHOD_FIELDS,
        "logprobs": {"mode": model.logprobs_mode, "max": model.max_logprobs},
    }
