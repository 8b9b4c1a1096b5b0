"""Speed of the teacher's client, beside the bare SDK, in one run.

    python benchmarks/teacher.py [--requests 600] [--repeats 3]

`live` asks a loopback server that answers after 50 ms, the bare SDK at the same concurrency in turn with
ours, which also stores every answer before it counts. `replay` reads answers from a cache; its peer is
the bare SDK asking an in-process transport that answers at once. Medians over the repeats. Writes
results/bench/teacher.csv.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from openai import AsyncOpenAI

from cfdistill.files import project_root
from cfdistill.params import Params
from cfdistill.teacher import Teacher
from cfdistill.teacher.cache import Answer
from cfdistill.teacher.prompts import Prompt, render

COLUMNS = ("name", "ours", "peer", "ratio", "unit")
LATENCY_S = 0.05
CONCURRENCIES = (8, 32)
REPLAYED = 10_000
MODEL = "some-model"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    os.environ["OPENAI_API_KEY"] = "none"
    asked = prompts(args.requests)
    rows = []
    with loopback_server() as url:
        for concurrency in CONCURRENCIES:
            ours, bare = [], []
            for _ in range(args.repeats):  # in turn, so that a drifting machine is fair to both
                bare.append(time_bare(asked, concurrency, url))
                ours.append(time_ours(asked, concurrency, url))
            rows.append(row(f"live, 50 ms, {concurrency} at once", len(asked), ours, len(asked), bare))
    replays = [time_replay() for _ in range(args.repeats)]
    instant = [time_bare(asked, 8, "http://instant.invalid/v1") for _ in range(args.repeats)]
    rows.append(row("replay", REPLAYED, replays, len(asked), instant))
    target = project_root() / "results" / "bench" / "teacher.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(target.read_text(encoding="utf-8"))


def row(name: str, our_count: int, ours: list[float], peer_count: int, peers: list[float]) -> tuple[str, ...]:
    """Return a row of the table from seconds."""
    our_speed, peer_speed = our_count / statistics.median(ours), peer_count / statistics.median(peers)
    return (name, f"{our_speed:.0f}", f"{peer_speed:.0f}", f"{our_speed / peer_speed:.2f}", "answers/s")


def prompts(count: int) -> list[Prompt]:
    """Return different prompts of a usual length."""
    return [render("reason", f"Where is number {i} of the hens?", ("barn", "shed")) for i in range(count)]


@contextmanager
def loopback_server() -> Iterator[str]:
    """Serve chat completions in a process of its own; yields the base URL."""
    script = project_root() / "tests" / "loopback.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(LATENCY_S)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        server.kill()


def time_ours(asked: list[Prompt], concurrency: int, url: str) -> float:
    """Return the seconds that a Teacher with an empty cache takes."""
    with tempfile.TemporaryDirectory() as folder:
        params = Params(
            run_root=folder,
            teacher="live",
            teacher_model=MODEL,
            teacher_base_url=url,
            teacher_concurrency=concurrency,
        )
        with Teacher(params) as teacher:
            began = time.perf_counter()
            teacher.ask(asked)
            return time.perf_counter() - began


def time_bare(asked: list[Prompt], concurrency: int, url: str) -> float:
    """Return the seconds that the SDK takes as its documentation shows it, the answers kept nowhere."""
    bodies = iter([prompt.request(MODEL) for prompt in asked])
    instant = {"transport": httpx2.MockTransport(lambda request: httpx2.Response(200, json=completion()))}
    http_client = httpx2.AsyncClient(**instant) if "instant" in url else None

    async def work(client: AsyncOpenAI) -> None:
        for body in bodies:
            await client.chat.completions.create(**body)

    async def work_all() -> float:
        async with AsyncOpenAI(base_url=url, http_client=http_client) as client:
            began = time.perf_counter()
            await asyncio.gather(*(work(client) for _ in range(concurrency)))
            return time.perf_counter() - began

    return asyncio.run(work_all())


def time_replay() -> float:
    """Return the seconds that answers from a cache take."""
    asked = prompts(REPLAYED)
    with tempfile.TemporaryDirectory() as folder:
        params = Params(run_root=folder, teacher="live", teacher_model=MODEL)
        with Teacher(params) as teacher:
            asker = (teacher.base_url, MODEL)
            response = json.dumps(completion())
            teacher.cache.put_all(Answer.to(p, response, *asker) for p in asked)
        cache = f"{folder}/teacher/cache.sqlite"
        with Teacher(params.model_copy(update={"teacher": "recorded", "teacher_cache": cache})) as teacher:
            began = time.perf_counter()
            assert len(teacher.ask(asked)) == REPLAYED
            return time.perf_counter() - began


def completion() -> dict[str, Any]:
    """Return a chat completion of a usual length."""
    message = {"role": "assistant", "content": f"{'Hens lay eggs in barns. ' * 8}So the answer is barn."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}


if __name__ == "__main__":
    main()
