"""Bridges to Python tools, each run by the tool itself against the server.

The tools stay out of the project's environment, whose pins they would move. To run these:

    python3.11 -m venv /tmp/bridges
    /tmp/bridges/bin/pip install -r clients/bridges/requirements.txt
    EM_INF_BRIDGES_PYTHON=/tmp/bridges/bin/python pytest -m bridges tests/clients/bridges
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import QUESTION, Server

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("EM_INF_BRIDGES_PYTHON", "")

pytestmark = [
    pytest.mark.bridges,
    pytest.mark.skipif(
        not PYTHON, reason="EM_INF_BRIDGES_PYTHON is not set; see this file's docstring"
    ),
]


def run(
    server: Server, *command: str, cwd: Path = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "EM_INF_URL": server.url,
            "QUESTION": QUESTION,
            **environ,
        },
        timeout=300,
    )


def said(server: Server, code: str) -> Any:
    """What a program prints as JSON on its last line."""
    ended = run(server, "-c", code)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def strong(server: Server) -> Any:
    return server.chat("strong", seed=1).json


LANGCHAIN = """
import asyncio, json, os
from em_inf import EMInf, report_of
from em_inf.clients.bridges.langchain import EMInfChatOpenAI

model = EMInfChatOpenAI(
    base_url=os.environ["EM_INF_URL"] + "/v1", api_key="none", model="em-inf-demo",
    seed=1, extra_body=dict(EMInf(preset="strong")),
)
question = os.environ["QUESTION"]
whole = model.invoke(question)
streamed = None
for chunk in model.stream(question):
    streamed = chunk if streamed is None else streamed + chunk
later = asyncio.run(model.ainvoke(question))
off = model.invoke(question, extra_body=dict(EMInf(enabled=False)))
try:
    model.invoke(question, extra_body={"em_inf": {"threshold": -1}})
except Exception as error:
    refused = str(error)
messages = [whole, streamed, later]
print(json.dumps({
    "texts": [message.content for message in messages],
    "steps": [report_of(m.response_metadata).choices[0].grad_steps for m in messages],
    "off": "em_inf" in off.response_metadata,
    "refused": refused,
}))
"""


def test_langchain(server: Server) -> None:
    body = said(server, LANGCHAIN)
    expected = strong(server)
    assert body["texts"] == [expected["choices"][0]["message"]["content"]] * 3
    assert body["steps"] == [expected["em_inf"]["choices"][0]["grad_steps"]] * 3
    assert body["off"] is False
    assert "em_inf.threshold" in body["refused"]


LITELLM = """
import json, os
import litellm
from em_inf import EMInf, report_of

asked = dict(
    model="hosted_vllm/em-inf-demo", api_base=os.environ["EM_INF_URL"] + "/v1",
    messages=[{"role": "user", "content": os.environ["QUESTION"]}],
    api_key="none", seed=1,
)
answer = litellm.completion(**asked, extra_body=dict(EMInf(preset="strong")))
chunks = list(
    litellm.completion(**asked, extra_body=dict(EMInf(preset="strong")), stream=True)
)
try:
    litellm.completion(**asked, extra_body={"em_inf": {"threshold": -1}})
except litellm.BadRequestError as error:
    refused = str(error)
print(json.dumps({
    "text": answer.choices[0].message.content,
    "steps": report_of(answer).choices[0].grad_steps,
    "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    "refused": refused,
}))
"""


def test_litellm(server: Server) -> None:
    body = said(server, LITELLM)
    expected = strong(server)
    text = expected["choices"][0]["message"]["content"]
    assert (body["text"], body["streamed"]) == (text, text)
    assert body["steps"] == expected["em_inf"]["choices"][0]["grad_steps"]
    assert "em_inf.threshold" in body["refused"]


LLM_COMMAND = """
import sys, llm
from llm.cli import cli
from llm.plugins import load_plugins, pm
from em_inf.clients.bridges import llm_plugin

load_plugins()
if not pm.is_registered(llm_plugin):
    pm.register(llm_plugin)
cli(sys.argv[1:], prog_name="llm")
"""


def test_llm_command_line(server: Server, tmp_path: Path) -> None:
    def llm(*args: str) -> subprocess.CompletedProcess[str]:
        return run(server, "-c", LLM_COMMAND, *args, LLM_USER_PATH=str(tmp_path))

    asked = ["-m", "em-inf", "-o", "preset", "strong", "-o", "seed", "1", QUESTION]
    text = strong(server)["choices"][0]["message"]["content"]
    streamed = llm(*asked)
    assert streamed.stdout.strip() == text, streamed.stderr
    assert llm(*asked, "--no-stream").stdout.strip() == text
    (logged,) = json.loads(llm("logs", "list", "--json", "-n", "1").stdout)
    assert logged["options_json"]["preset"] == "strong"
    assert logged["response_json"]["em_inf"]["settings"]["n_grad_steps"] == 15
    for option, value in (("n_grad_steps", "many"), ("n_grad_steps", "-1")):
        wrong = llm("-m", "em-inf", "-o", option, value, QUESTION)
        assert wrong.returncode != 0
        assert "n_grad_steps" in wrong.stderr
    listed = llm("models", "list", "--options", "-m", "em-inf").stdout
    assert "n_grad_steps" in listed
    assert "Adam steps" in listed


TASK = """
task: em_inf_demo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 100}}
metric_list: [{{metric: exact_match}}]
"""


def test_lm_evaluation_harness(server: Server, tmp_path: Path) -> None:
    pairs = [(QUESTION, "55"), ("Anna has 2 pens. She buys 3. How many pens?", "5")]
    data = tmp_path / "questions.jsonl"
    lines = (json.dumps({"question": q, "answer": a}) for q, a in pairs)
    data.write_text("\n".join(lines))
    (tmp_path / "task.yaml").write_text(TASK.format(data=data))
    url = f"{server.url}/v1/chat/completions"
    model = f"model={DEMO_MODEL_NAME},base_url={url},tokenized_requests=False"
    before = server.metrics()
    ended = run(
        server, "-m", "lm_eval", "--model", "local-chat-completions",
        "--model_args", model,
        "--tasks", "em_inf_demo", "--include_path", str(tmp_path),
        "--apply_chat_template", "--log_samples",
        "--output_path", str(tmp_path / "out"),
        "--gen_kwargs",
        '{"em_inf": {"n_grad_steps": 15}, "temperature": 1.0, "do_sample": true}',
        OPENAI_API_KEY="none", HF_HOME=str(tmp_path / "hf"), HF_DATASETS_OFFLINE="1",
        HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    name = 'em_inf_requests_total{method="gradient",preset="custom"}'
    assert server.metrics()[name] - before.get(name, 0) == len(pairs)
    (samples,) = (tmp_path / "out").rglob("samples_em_inf_demo_*.jsonl")
    assert len(samples.read_text().splitlines()) == len(pairs)
