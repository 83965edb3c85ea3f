"""EM-INF for users of OpenAI's SDK: settings go in, a typed report comes out.

    from openai import OpenAI
    from em_inf import EMInf, report_of

    client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")
    answer = client.chat.completions.create(
        model="em-inf-demo",
        messages=[{"role": "user", "content": "Tom has 3 apples. ..."}],
        extra_body=EMInf(n_grad_steps=15),
    )
    print(report_of(answer).choices[0].tokens_minimized)

Works with any vLLM that runs our plugin. Stock vLLM ignores the field: there `report_of`
raises `NoReportError`, which says so.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_inf.clients.errors import NoReportError as NoReportError
    from em_inf.clients.errors import SettingRefusedError as SettingRefusedError
    from em_inf.clients.errors import SettingsError as SettingsError
    from em_inf.clients.errors import setting_errors as setting_errors
    from em_inf.clients.report import AppliedSettings as AppliedSettings
    from em_inf.clients.report import ChoiceReport as ChoiceReport
    from em_inf.clients.report import Report as Report
    from em_inf.clients.report import Trace as Trace
    from em_inf.clients.report import report_of as report_of
    from em_inf.clients.settings import EMInf as EMInf
    from em_inf.clients.streams import AsyncEMInfStream as AsyncEMInfStream
    from em_inf.clients.streams import Delta as Delta
    from em_inf.clients.streams import EMInfStream as EMInfStream
    from em_inf.clients.streams import follow as follow
    from em_inf.clients.tokens import Token as Token
    from em_inf.clients.tokens import TokenText as TokenText
    from em_inf.clients.tokens import tokens_of as tokens_of

_HOME = {
    "EMInf": "settings",
    "NoReportError": "errors",
    "SettingRefusedError": "errors",
    "SettingsError": "errors",
    "setting_errors": "errors",
    "AppliedSettings": "report",
    "ChoiceReport": "report",
    "Report": "report",
    "Trace": "report",
    "report_of": "report",
    "AsyncEMInfStream": "streams",
    "Delta": "streams",
    "EMInfStream": "streams",
    "follow": "streams",
    "Token": "tokens",
    "TokenText": "tokens",
    "tokens_of": "tokens",
}
"""Public name to module. Read on demand: `em-inf --help` need not load the SDK."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'em_inf' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"em_inf.clients.{_HOME[name]}"), name)
