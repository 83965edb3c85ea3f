"""The command line: what it prints, where, and with which code it ends."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

from em_inf.clients.cli import EXIT_CODES, main
from em_inf.server import cli as server_cli
from tests.clients.asking import assert_stopped_early, generated
from tests.clients.conftest import Run
from tests.clients.terminals import COMMAND, environ, piped, terminal
from tests.e2e.serving import ENDLESS, QUESTION, Server

NOWHERE = "http://127.0.0.1:9"
ESCAPE = "\x1b"
COMMANDS = ("chat", "compare", "trace", "doctor")


def test_console_script_is_this_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="em-inf")
    assert script.load() is main


def test_serve_gets_its_arguments_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[list[str]] = []
    monkeypatch.setattr(server_cli, "main", got.append)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "MODEL", "--help", "--em-inf-default", "strong"])
    assert ended.value.code == 0
    assert got == [["serve", "MODEL", "--help", "--em-inf-default", "strong"]]


def test_version_and_help_need_neither_sdk_nor_vllm() -> None:
    code = (
        "import sys; from em_inf.clients.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'openai', 'vllm', 'torch'} & set(sys.modules)"
    )
    for flag, text in (("--version", version("em-inf")), ("--help", EXIT_CODES)):
        command = [sys.executable, "-c", code, flag]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        assert text in said.stdout


def test_client_commands_work_without_vllm_and_torch(server: Server) -> None:
    code = (
        "import sys; sys.modules.update(vllm=None, torch=None)\n"
        "from em_inf.clients.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "doctor", "--url", server.url]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("name", [*COMMANDS, "eval"])
def test_help_shows_examples(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help", url=None)
    assert code == 0
    examples = out.partition("examples:\n")[2].splitlines()
    assert (
        sum(line.startswith("  ") and f"em-inf {name}" in line for line in examples) > 2
    )


def test_no_command_prints_help_and_unknown_one_is_wrong_usage(run: Run) -> None:
    assert run(url=None)[0] == 0
    code, out, err = run("bake", url=None)
    assert (code, out) == (2, "")
    assert "invalid choice: 'bake'" in err


def test_doctor_finds_all_well(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0, out
    assert "runner V1, backend cpu" in out
    assert "of 16 tokens sharpened; with no gradient step, none" in out
    assert "FAIL" not in out


def test_doctor_says_what_to_do_where_no_server_is(run: Run) -> None:
    code, out, _ = run("doctor", "--json", url=NOWHERE)
    found = json.loads(out)
    assert (code, found["ok"]) == (3, False)
    assert "em-inf serve" in found["checks"][-1]["advice"]


def test_stock_vllm_is_told_apart_by_every_command(run: Run, stock: Server) -> None:
    code, out, _ = run("doctor", url=stock.url)
    assert code == 4
    assert "in the place of `vllm serve MODEL`" in out
    for command in ("compare", "trace"):
        code, out, err = run(command, QUESTION, url=stock.url)
        assert (code, out) == (4, "")
        assert "did not apply EM-INF" in err


def test_missing_key_is_told(run: Run, operated: Server) -> None:
    code, out, _ = run("doctor", url=operated.url)
    assert code == 1
    assert "--api-key" in out
    assert run("doctor", "--api-key", "secret", url=operated.url)[0] == 0
    code, _, err = run("trace", "x", url=operated.url)
    assert code == 1
    assert "EM_INF_API_KEY" in err


def test_compare_has_a_row_and_an_answer_for_each_setting(
    run: Run, server: Server
) -> None:
    code, out, err = run("compare", QUESTION, "--json", "--seed", "5")
    assert code == 0
    assert "5 of 5: temperature=0.5" in err
    body = json.loads(out)
    answers: dict[str, Any] = {answer["setting"]: answer for answer in body["answers"]}
    assert list(answers) == ["off", "balanced", "strong", "adaptive", "temperature=0.5"]
    for name, answer in answers.items():
        touched = name in ("balanced", "strong", "adaptive")
        assert (answer["tokens_minimized"] > 0) == touched
        lower = answer["mean_entropy_after"] < answer["mean_entropy_before"]
        assert lower == touched
        assert answer["seconds"] > 0
    asked: dict[str, Any] = {"seed": 5, "temperature": 1.0, "top_p": 1.0}
    plain = server.chat(False, **asked).json["choices"][0]["message"]["content"]
    assert answers["off"]["text"] == plain
    cool = server.chat(False, **{**asked, "temperature": 0.5}).json["choices"][0]
    assert answers["temperature=0.5"]["text"] == cool["message"]["content"]
    strong = server.chat("strong", **asked).json["choices"][0]["message"]["content"]
    assert answers["strong"]["text"] == strong


def test_compare_takes_settings_of_ones_own_in_a_table(run: Run) -> None:
    settings = ["n_grad_steps=30,threshold=0.1,temperature=0.7", "off"]
    flags = [part for setting in settings for part in ("--setting", setting)]
    code, out, _ = run("compare", QUESTION, *flags, "--completion", "--max-tokens", "20")
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines()[2:4]]
    assert rows == settings
    assert all(f"== {setting}\n" in out for setting in settings)


def test_trace_lists_every_token(run: Run) -> None:
    code, out, _ = run("trace", QUESTION, "--n-grad-steps", "15", "--seed", "1", "--json")
    body = json.loads(out)
    assert code == 0
    assert body["em_inf"]["n_grad_steps"] == 15
    assert sum(t["grad_steps"] for t in body["tokens"]) == body["grad_steps"]
    assert "".join(t["text"] for t in body["tokens"]).startswith(body["text"])
    code, out, _ = run("trace", QUESTION, "--n-grad-steps", "15", "--seed", "1")
    table = out.partition("\n\n")[0].splitlines()[2:]
    assert len(table) == len(body["tokens"])
    _, touched, _ = run(
        "trace", QUESTION, "--n-grad-steps", "15", "--seed", "1", "--touched"
    )
    assert len(touched.partition("\n\n")[0].splitlines()[2:]) == body["tokens_minimized"]


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_trace_draws_the_figure(
    run: Run, tmp_path: Path, ending: str, start: bytes
) -> None:
    path = tmp_path / f"out.{ending}"
    question = "A pen costs $5 and a book $12_{7}. \u65e5\u672c"
    code, _, err = run(
        "trace", question, "--plot", str(path), "--preset", "adaptive", "--completion",
        "--max-tokens", "30",
    )  # fmt: skip
    assert code == 0, err
    assert f"wrote {path}" in err
    assert path.read_bytes().startswith(start)
    if ending == "svg":
        assert "Entropy (nats)" in path.read_text()
        assert "Temperature" in path.read_text()


def test_output_survives_an_encoding_without_its_characters(server: Server) -> None:
    said = piped("trace", QUESTION, "--url", server.url, PYTHONIOENCODING="ascii")
    assert said.returncode == 0, said.stderr
    assert "nats before" in said.stdout


class _Website(BaseHTTPRequestHandler):
    """Answers everything with a page."""

    def do_GET(self) -> None:
        body = b"<html>Welcome</html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


def test_another_service_at_the_address_is_told(run: Run) -> None:
    with HTTPServer(("127.0.0.1", 0), _Website) as website:
        threading.Thread(target=website.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{website.server_port}"
        code, out, _ = run("doctor", url=url)
        assert (code, "OpenAI-compatible" in out) == (1, True)
        code, out, _ = run("doctor", "--model", "m", url=url)
        assert (code, "another service" in out) == (4, True)
        code, out, err = run("trace", "x", url=url)
        assert (code, "OpenAI-compatible" in err) == (1, True)
        website.shutdown()


def test_prompt_comes_from_stdin(run: Run) -> None:
    _, out, _ = run("trace", "-", "--json", stdin=QUESTION)
    assert json.loads(out)["prompt"] == QUESTION


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["trace", "x", "--n-grad-steps", "65"], 2, "em_inf.n_grad_steps: 65"),
        (["trace", "x", "--n-grad-steps", "-1"], 2, "em_inf.n_grad_steps: -1"),
        (["trace", "x", "--threshold", "low"], 2, "em_inf.threshold: 'low'"),
        (["trace", "x", "--preset", "nope"], 2, "em_inf.preset: 'nope'"),
        (["trace", "x", "--target-ratio", "0.5"], 2, "em_inf.target_ratio: 0.5"),
        (["trace", "x", "--off", "--preset", "paper"], 2, "--off"),
        (["trace", "x", "--temperature", "-1"], 2, "temperature: '-1'"),
        (["trace", "x", "--plot", "out.gif"], 2, "must end in .pdf, .png, .svg"),
        (["trace", "x", "--plot", "/nowhere/out.pdf"], 2, "is no folder"),
        (["trace", " "], 2, "PROMPT is empty"),
        (["trace", "\udcff"], 2, "PROMPT is not UTF-8"),
        (["trace", "x", "--timeout", "-1"], 2, "--timeout"),
        (["trace", "x", "--timeout", "soon"], 2, "--timeout"),
        (["trace", "x", "--max-tokens", "0"], 1, "max_tokens"),
        (["trace", "x", "--api-key", "cl\u00e9"], 2, "--api-key"),
        (["compare", "x", "--setting", "nope"], 2, "em_inf.preset: 'nope'"),
        (["compare", "x", "--setting", "step=3"], 2, "'step' is no setting"),
        (["compare", "x", "--setting", "top_p=2"], 2, "top_p: '2'"),
        (["compare", "x", "--model", "nope"], 1, "nope"),
        (["chat", "--kl-weight", "1000"], 2, "em_inf.kl_weight: 1000"),
        (["doctor", "--model", "nope"], 1, ""),
    ],
)
def test_what_is_wrong_is_named_and_has_its_code(
    run: Run, args: list[str], code: int, reason: str
) -> None:
    ended, out, err = run(*args)
    assert ended == code
    assert reason in err
    assert "Traceback" not in out + err


def test_answer_that_takes_too_long_says_so(run: Run) -> None:
    # Where this process has to wait for a core, the answer may be there in time.
    for _ in range(5):
        ended, _, err = run("trace", "x", "--timeout", "0.0001")
        if ended:
            break
    assert ended == 1
    assert "--timeout" in err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", ""])
def test_address_that_is_none_is_refused(run: Run, url: str) -> None:
    code, _, err = run("doctor", "--url", url, url=None)
    assert code == 2
    assert "--url" in err


@pytest.mark.parametrize("command", ["compare", "trace", "chat"])
def test_no_server_has_a_code_of_its_own(run: Run, command: str) -> None:
    prompt = [] if command == "chat" else ["x"]
    code, out, err = run(command, *prompt, url=NOWHERE)
    assert (code, out) == (3, "")
    assert "em-inf serve" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_pipe_gets_no_escape_codes(server: Server, command: str) -> None:
    prompt = [QUESTION] if command in ("compare", "trace") else []
    said = piped(
        command, *prompt, "--url", server.url,
        stdin=f"/shade on\n{QUESTION}\n/help\n", FORCE_COLOR="1",
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout
    assert ESCAPE not in said.stdout + said.stderr


def test_terminal_gets_colour_unless_it_is_declined(server: Server) -> None:
    color = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    with terminal("doctor", "--url", server.url) as screen:
        assert screen.code() == 0
        assert color.search(screen.seen)
    with terminal("doctor", "--url", server.url, NO_COLOR="1") as screen:
        assert screen.code() == 0
        assert not color.search(screen.seen)
        assert "sharpened" in screen.seen


def test_compare_stands_side_by_side_on_a_terminal(server: Server) -> None:
    args = ["compare", QUESTION, "--setting", "off", "--setting", "strong"]
    with terminal(*args, "--url", server.url) as screen:
        assert screen.code() == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.seen)
    assert re.search(r"─ off ─.*─ strong ─", plain)


def test_interrupt_ends_cleanly_and_stops_the_server(server: Server) -> None:
    before = generated(server)
    asked = ["trace", "hello", "--max-tokens", str(ENDLESS), "--temperature", "0"]
    with terminal(*asked, "--url", server.url) as screen:
        screen.expect(r"[1-9]\d+ tokens")
        screen.send("\x03")
        assert screen.code() == 130
    assert "em-inf: interrupted" in screen.seen
    assert "Traceback" not in screen.seen
    assert_stopped_early(server, before)


def test_reader_that_leaves_is_no_error(server: Server) -> None:
    process = subprocess.Popen(
        [*COMMAND, "trace", QUESTION, "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(),
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 141, said
    assert b"Traceback" not in said
    process.stderr.close()
