"""`em-inf chat`, on a terminal and in a pipe."""

import json

import pytest

from tests.clients.asking import assert_stopped_early, generated, metric
from tests.clients.conftest import Run
from tests.clients.terminals import terminal
from tests.e2e.serving import ENDLESS, QUESTION, Server

FIXED = ["--seed", "1", "--temperature", "1"]


def test_lines_of_a_pipe_are_answered_one_by_one(run: Run, server: Server) -> None:
    code, out, err = run("chat", *FIXED, stdin=f"{QUESTION}\n/quit\nx\n")
    plain = server.chat(True, seed=1, temperature=1, top_p=1).json
    assert (code, err) == (0, "")
    assert out == plain["choices"][0]["message"]["content"] + "\n"


def test_settings_change_between_answers(run: Run) -> None:
    lines = [
        "/preset strong", QUESTION, "/reset",
        "/set n_grad_steps 3", "/set threshold 0.5", QUESTION, "/reset",
        "/unset n_grad_steps", QUESTION, "/reset",
        "/off", QUESTION, "/reset",
        "/shade on", QUESTION,
    ]  # fmt: skip
    code, out, err = run("chat", "--json", *FIXED, stdin="\n".join(lines))
    assert code == 0, err
    replies = [json.loads(line)["em_inf"] for line in out.splitlines()]
    used = [reply and reply["settings"] for reply in replies]
    assert [s and (s["n_grad_steps"], s["threshold"]) for s in used] == [
        (15, 0.3), (3, 0.5), (15, 0.5), None, (0, 0.3),
    ]  # fmt: skip
    assert replies[-1]["choices"][0]["tokens_minimized"] == 0
    assert replies[-1]["choices"][0]["mean_entropy_before"] > 0


def test_conversation_is_remembered_until_reset(run: Run, server: Server) -> None:
    def prompt_tokens(*lines: str) -> float:
        before = metric(server, "vllm:prompt_tokens_total")
        _, out, _ = run("chat", *FIXED, stdin="\n".join(lines))
        assert len(out.splitlines()) == lines.count(QUESTION)
        return metric(server, "vllm:prompt_tokens_total") - before

    once = prompt_tokens(QUESTION)
    assert prompt_tokens(QUESTION, "/reset", QUESTION) == 2 * once
    # The second time, with the first question and its answer.
    assert prompt_tokens(QUESTION, QUESTION) > 3 * once


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/set n_grad_steps -1", "em_inf.n_grad_steps: -1"),
        ("/set steps 3", "'steps' is no setting"),
        ("/temperature hot", "temperature: 'hot'"),
        ("/frobnicate", "/help"),
        ("/set n_grad_steps 65\nhello", "at most 64"),
    ],
)
def test_wrong_command_or_setting_in_a_pipe_ends_it_with_2(
    run: Run, line: str, reason: str
) -> None:
    code, out, err = run("chat", stdin=f"{line}\n{QUESTION}\n")
    assert (code, out) == (2, "")
    assert reason in err


def test_stock_vllm_is_found_out_after_the_answer(run: Run, stock: Server) -> None:
    code, _, err = run("chat", stdin=f"{QUESTION}\n", url=stock.url)
    assert code == 4
    assert "did not apply EM-INF" in err


def test_conversation_on_a_terminal(server: Server) -> None:
    with terminal("chat", *FIXED, "--url", server.url) as screen:
        screen.expect("/help lists the commands")
        screen.expect("> ")
        screen.send("/set n_grad_steps 65\n")
        screen.expect("EM-INF on; n_grad_steps 65")
        screen.expect("> ")
        screen.send(QUESTION + "\n")
        screen.expect("em_inf.n_grad_steps: 65 is not allowed")
        screen.expect("> ")
        screen.send("/set n_grad_steps 15\n")
        screen.expect("EM-INF on; n_grad_steps 15")
        screen.expect("> ")
        screen.send("/set n_grad_steps many\n")
        screen.expect("'many' is not allowed")
        screen.expect("> ")
        screen.send("/shade on\n")
        screen.expect("; shaded")
        screen.expect("> ")
        screen.send(QUESTION + "\n")
        screen.expect(r"The answer is \d+\.")  # As it streams,
        screen.expect(r"\x1b\[[0-9;]*48;5;\d+m")  # and again, with its shades.
        screen.expect("entropy before, nats")
        screen.expect(r"\d+ tokens, \d+ changed")
        screen.expect("> ")
        # Not Ctrl-D: typed before readline has the terminal, it would be lost.
        screen.send("/quit\n")
        assert screen.code() == 0
    assert "Traceback" not in screen.seen


def test_interrupt_stops_the_answer_and_then_the_conversation(server: Server) -> None:
    before = generated(server)
    asked = [
        "chat",
        "--temperature",
        "0",
        "--max-tokens",
        str(ENDLESS),
        "--url",
        server.url,
    ]
    with terminal(*asked) as screen:
        screen.expect("> ")
        screen.send("hello\n")
        screen.expect("(?s)hello.{80}")
        screen.send("\x03")
        screen.expect("stopped")
        assert_stopped_early(server, before)
        screen.expect("> ")
        screen.send("/settings\n")
        screen.expect("EM-INF on")
        screen.expect("> ")
        screen.send("\x03")
        assert screen.code() == 130
    assert "em-inf: interrupted" in screen.seen
    assert "Traceback" not in screen.seen
