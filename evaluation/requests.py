"""Requests to the server: their form, retries, and what an answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from em_inf.clients.errors import NoReportError
from em_inf.clients.report import report_of
from em_inf.clients.settings import EMInf
from em_inf.clients.tokens import Token, tokens_of
from em_inf.evaluation.decoding import Messages
from em_inf.evaluation.errors import PlanError, StoppedError
from em_inf.evaluation.plan import Plan, Progress

OFF: Mapping[str, Any] = {"preset": "measure"}
"""Changes no logit, and measures entropies; a test of the server's holds that."""
NEUTRAL = {"temperature": 1.0, "top_p": 1.0}
"""Sent where nobody says otherwise, so that no server puts its own values in."""
VLLM_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""The same for fields that only vLLM knows; else the model's generation config rules."""
_OPENAI_FIELDS = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "max_tokens", "stop",
)  # fmt: skip
_REFUSALS = (400, 413, 422)
_IDLE_SECONDS = 2.0
"""Idle connections are given up before uvicorn does it, after 5 s, at a bad moment."""


@dataclass(frozen=True)
class Served:
    """What is known of the server.

    Attributes:
        model: the name to ask for.
        em_inf: what `GET /v1/em_inf` says; {} where the server has no EM-INF.
        vllm: whether it knows vLLM's sampling parameters.
    """

    model: str
    em_inf: Mapping[str, Any]
    vllm: bool


@dataclass(frozen=True)
class Reply:
    """One answer, as far as it is worth keeping.

    Attributes:
        refused: the server's sentence where it refused this request for good.
        seconds: of the last try.
        top: logprobs of the likeliest tokens at each position, where asked for.
        entropies: of each token before EM-INF, nats, where a trace was asked for.
        The others: as in `records.Call`.
    """

    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    tokens_minimized: int = 0
    grad_steps: int | None = None
    entropy_before: float | None = None
    entropy_after: float | None = None
    seconds: float = 0.0
    tries: int = 1
    refused: str | None = None
    top: tuple[tuple[float, ...], ...] = ()
    entropies: tuple[float | None, ...] = ()


class Connection:
    """OpenAI's client for one run.

    It tries again after a broken connection, a time-out, 408, 409, 429 and 5xx, with
    exponential back-off and jitter, or when `Retry-After` says (up to two minutes).
    """

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._told = False
        self.served = Served(plan.model, {}, False)
        limits = copy(openai.DEFAULT_CONNECTION_LIMITS)
        limits.keepalive_expiry = _IDLE_SECONDS
        self.client = openai.AsyncOpenAI(
            base_url=f"{plan.url}/v1",
            api_key=plan.api_key,
            timeout=plan.timeout,
            max_retries=plan.retries,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        )

    async def look(self) -> Served:
        """Ask the server what it is, once: at the start, waiting helps nobody.

        Raises:
            openai.APIError: it does not answer.
            PlanError: it has no model.
        """
        once = self.client.with_options(max_retries=0)
        try:
            listed: Any = await once.get("/models", cast_to=object)
            models = listed["data"]
            own = [m for m in models if self._plan.model in ("", m["id"])]
            model = self._plan.model or str(models[0]["id"])
            vllm = any(m.get("owned_by") == "vllm" for m in own or models)
        except (TypeError, KeyError, IndexError, AttributeError):
            raise PlanError(
                f"{self._plan.url}/v1/models lists no model; is it an OpenAI-compatible "
                "server?"
            ) from None
        try:
            about: Any = await once.get("/em_inf", cast_to=object)
        except (openai.NotFoundError, openai.PermissionDeniedError):
            about = {}
        if not isinstance(about, Mapping) or "vllm_version" not in about:
            about = {}  # Another service's page.
        self.served = Served(model, about, vllm or bool(about))
        return self.served

    async def ask(
        self,
        messages: Messages,
        fields: Mapping[str, Any],
        seed: int,
        *,
        trace: int = 0,
    ) -> Reply:
        """Send one request, and try again where that may help.

        Args:
            messages: the conversation.
            fields: the decoder's: sampling parameters, and `em_inf`, None where off.
            seed: of the request.
            trace: ask for so many top logprobs, and for each token's entropy.

        Raises:
            StoppedError: the server does not answer, or not us.
        """
        body = self._body(fields, seed, "trace" if trace else "summary")
        if trace:
            body.update(logprobs=True, top_logprobs=trace)
        create = self.client.chat.completions.with_raw_response.create
        try:
            raw = await create(messages=list(messages), **body)  # type: ignore[arg-type]
            answer = raw.parse()
            if not isinstance(answer, ChatCompletion) or not answer.choices:
                raise openai.APIResponseValidationError(raw.http_response, None)
        except openai.APIStatusError as error:
            if error.status_code in _REFUSALS:
                return Reply(refused=sentence(error))
            raise StoppedError(self._why(error), error) from error
        except (openai.APIError, ValueError) as error:  # ValueError: broken JSON.
            raise StoppedError(self._why(error), error) from error
        if raw.retries_taken and not self._told:
            self._told = True
            self._progress.say(
                "a request was refused or broken off, and sent again; the report counts"
                " how often that happened"
            )
        return _reply(answer, raw.elapsed.total_seconds(), raw.retries_taken + 1)

    async def trace(
        self, messages: Messages, fields: Mapping[str, Any], seed: int
    ) -> tuple[str, list[Token]]:
        """The text of one request's answer, and its tokens with their entropies.

        Args:
            messages: the conversation.
            fields: as for `ask`.
            seed: of the request.

        Raises:
            openai.APIError: the server does not answer.
            NoReportError: it answers without a trace.
        """
        body = self._body(fields, seed, "trace")
        answer: Any = await self.client.chat.completions.create(
            messages=list(messages),  # type: ignore[arg-type]
            logprobs=True,
            **body,
        )
        return answer.choices[0].message.content or "", tokens_of(answer)

    def _body(self, fields: Mapping[str, Any], seed: int, report: str) -> dict[str, Any]:
        neutral = {**NEUTRAL, **(VLLM_NEUTRAL if self.served.vllm else {})}
        merged = {**neutral, **self._plan.sampling, **fields}
        settings = merged.pop("em_inf", None)
        own = {name: merged.pop(name) for name in _OPENAI_FIELDS if name in merged}
        if self.served.em_inf:
            given = OFF if settings is None else settings
            merged.update(EMInf(**{**given, "report": report}))
        return {"model": self.served.model, "seed": seed, "extra_body": merged, **own}

    def _why(self, error: Exception) -> str:
        tries = self._plan.retries + 1
        if isinstance(error, openai.APITimeoutError):
            return f"the server did not answer in {self._plan.timeout:g} s, {tries} times"
        if isinstance(error, openai.APIConnectionError):
            return f"no server answers any more, after {tries} tries"
        if isinstance(error, openai.APIStatusError):
            return f"the server answers {error.status_code}: {sentence(error)}"
        return f"the server's answer cannot be read: {error}"


def sentence(error: openai.APIError) -> str:
    """What the server says of a request that it does not answer."""
    body = error.body
    text = body.get("message") if isinstance(body, Mapping) else None
    return str(text or error.message)


def _reply(answer: ChatCompletion, seconds: float, tries: int) -> Reply:
    choice = answer.choices[0]
    usage = answer.usage
    try:
        report = report_of(answer).choices[0]
    except NoReportError:
        report = None  # No EM-INF here, or its figures were lost.
    positions = (choice.logprobs and choice.logprobs.content) or []
    trace = report.trace if report else None
    return Reply(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        tokens=usage.completion_tokens if usage else 0,
        tokens_minimized=report.tokens_minimized if report else 0,
        grad_steps=report.grad_steps if report else None,
        entropy_before=report.mean_entropy_before if report else None,
        entropy_after=report.mean_entropy_after if report else None,
        seconds=round(seconds, 6),
        tries=tries,
        top=tuple(tuple(t.logprob for t in p.top_logprobs) for p in positions),
        entropies=trace.entropy_before if trace else (),
    )
