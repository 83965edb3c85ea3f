"""The server benchmarks against real servers, in a few requests."""

from collections.abc import Iterator

import psutil
import pytest

from em_inf.loadtests import bench_server
from em_inf.loadtests.bench_server import Asked, Bench, CheckFailedError
from em_inf.loadtests.client import RequestFailedError
from em_inf.loadtests.serving import Serving
from em_inf.server.cli import DEMO_MODEL_NAME
from tests.e2e.serving import Server


def as_serving(server: Server) -> Serving:
    return Serving(server.url, psutil.Process(server.process.pid))


@pytest.fixture
def bench(server: Server, stock: Server) -> Iterator[Bench]:
    pair = as_serving(server), as_serving(stock)
    yield Bench(*pair, model=DEMO_MODEL_NAME)
    for one in pair:
        one.go_on()


def test_contenders_agree_where_they_must(bench: Bench) -> None:
    bench_server.check_same_words(bench, tokens=32)


def test_every_contender_is_measured_with_ratios_in_every_metric(
    bench: Bench, server: Server
) -> None:
    case = bench_server.measure(bench, Asked(2, 4, 48), rounds=2, seconds=60.0)
    assert case["rounds"] == 2
    assert set(case["contenders"]) == set(bench_server.CONTENDERS)
    metrics = set(case["contenders"]["off"])
    assert metrics > {"ttft_seconds", "itl_seconds", "tpot_seconds", "e2e_seconds"}
    for over in ("on / off", "off / stock vLLM", "off again / off"):
        assert set(case["ratios"][over]) == metrics
    assert case["entropy_before_nats"]["100%"] > 0.3
    shares = case["share_of_time_in_em_inf"]
    on = {name for name, field in bench_server.CONTENDERS.items() if field}
    assert set(shares) == on
    assert all(0 < share["median"] < 1 for share in shares.values())
    bench_server.check_errors(as_serving(server))


def test_without_our_server_there_is_nothing_to_report(stock: Server) -> None:
    only_stock = Bench(as_serving(stock), as_serving(stock), model=DEMO_MODEL_NAME)
    try:
        with pytest.raises((CheckFailedError, RequestFailedError)):
            only_stock.run("on", Asked(1, 2, 8), 0)
    finally:
        as_serving(stock).go_on()
