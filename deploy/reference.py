"""Write the flags and metrics into README.md beside this file, from the code.

`.venv/bin/python deploy/reference.py` fills what lies between its markers; a test holds
that it is so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from em_inf.server import metrics
from em_inf.server.cli import add_flags

FILE = Path(__file__).with_name("README.md")


def flags() -> str:
    """A table of our flags of `em-inf serve`."""
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for action in parser._actions:
        value = f" {action.metavar}" if action.metavar else ""
        flag = f"{action.option_strings[0]}{value}".replace("|", "\\|")
        default = "" if action.default in (None, False) else f"`{action.default}`"
        rows.append(f"| `{flag}` | {default} | {action.help} |")
    return "\n".join(rows)


def metric_table() -> str:
    """A table of our metrics on /metrics."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for collector in vars(metrics).values():
        if isinstance(collector, MetricWrapperBase):
            described = collector.describe()[0]
            total = "_total" if described.type == "counter" else ""
            labels = ", ".join(f"`{name}`" for name in collector._labelnames)
            rows.append(
                f"| `{described.name}{total}` | {described.type} | {labels} "
                f"| {described.documentation} |"
            )
    return "\n".join(rows)


def filled(text: str) -> str:
    """The text with its tables as the code has them."""
    for name, table in (("flags", flags()), ("metrics", metric_table())):
        begin, end = f"<!-- {name}: deploy/reference.py -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{FILE} has not the markers of {name} once each")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    FILE.write_text(filled(FILE.read_text()))
