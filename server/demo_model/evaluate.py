"""Measure the demo model on held-out problems and write its model card's table.

    make serve          # in one terminal
    make card           # in another: asks that server over HTTP

Every decoder gets the same problems with the same seeds. Nothing is retried and nothing
left out: an answer without "The answer is N." counts as wrong and is counted apart.
"""

import argparse
import asyncio
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import openai

from em_inf.server.demo_model.problems import Problem, extract_answer, problems

CARD = Path(__file__).parent / "MODEL_CARD.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
SEED = 90210
DECODERS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1.0": {"temperature": 1.0},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1.0, EM-INF n 5": {"temperature": 1.0, "em_inf": "balanced"},
    "temperature 1.0, EM-INF n 15": {"temperature": 1.0, "em_inf": "strong"},
    "temperature 1.0, adaptive temperature": {"temperature": 1.0, "em_inf": "adaptive"},
}


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Source: E. B. Wilson, JASA 22 (1927), equation as in any textbook since.
    """
    share = right / total
    middle = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (middle - half) / scale, (middle + half) / scale


async def answer(
    client: openai.AsyncOpenAI,
    model: str,
    problem: Problem,
    seed: int,
    decoder: dict[str, Any],
) -> tuple[int | None, dict[str, Any] | None]:
    """One answer: the number in it, and the statistics of its tokens."""
    options = dict(decoder)
    em_inf = options.pop("em_inf", None)
    response = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": problem.question}],
        max_tokens=256,
        seed=seed,
        extra_body={"em_inf": em_inf} if em_inf else {},
        **options,
    )
    report = (response.model_extra or {}).get("em_inf")
    text = response.choices[0].message.content or ""
    return extract_answer(text), report["choices"][0] if report else None


async def measure(url: str, count: int, concurrency: int) -> list[str]:
    """The table's lines."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    model = (await client.models.list()).data[0].id
    asked = list(itertools.islice(problems("held_out", SEED), count))
    gate = asyncio.Semaphore(concurrency)
    lines = [
        "| decoder | right | accuracy | 95 % interval | no answer | tokens touched "
        "| entropy before → after, nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, decoder in DECODERS.items():

        async def one(
            seed: int, problem: Problem, decoder: dict[str, Any] = decoder
        ) -> tuple[int | None, dict[str, Any] | None]:
            async with gate:
                return await answer(client, model, problem, seed, decoder)

        results = await asyncio.gather(*(one(i, p) for i, p in enumerate(asked)))
        right = sum(n == p.answer for (n, _), p in zip(results, asked, strict=True))
        none = sum(n is None for n, _ in results)
        low, high = wilson(right, count)
        reports = [report for _, report in results if report]
        touched = entropy = ""
        if reports:
            tokens = sum(r["tokens"] for r in reports)
            touched = f"{sum(r['tokens_minimized'] for r in reports) / tokens:.1%}"
            before, after = (
                sum(r[f"mean_entropy_{when}"] * r["tokens"] for r in reports) / tokens
                for when in ("before", "after")
            )
            entropy = f"{before:.3f} → {after:.3f}"
        lines.append(
            f"| {name} | {right} / {count} | {right / count:.1%} "
            f"| {low:.1%} to {high:.1%} | {none} | {touched} | {entropy} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measure, print, and rewrite the card's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--dry-run", action="store_true", help="leave the card alone")
    args = parser.parse_args()
    lines = asyncio.run(measure(args.url, args.count, args.concurrency))
    if args.dry_run:
        return
    card = CARD.read_text()
    head, _, rest = card.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        sys.exit(f"{CARD} has no place for the table, between {BEGIN} and {END}")
    table = "\n".join(lines)
    CARD.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}")


if __name__ == "__main__":
    main()
