"""A server on the loopback interface that answers chat completions, with faults if wanted.

python tests/loopback.py LATENCY_S    # prints its port and serves until it is killed
"""

import asyncio
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

FAULTS = (
    "rate limit",
    "rate limit with Retry-After",
    "server error",
    "connection reset",
    "stalled body",
    "truncated JSON",
    "wrong content type",
    "empty choices",
    "refusal",
)


def completion(content: str | None, **more: Any) -> dict[str, Any]:
    return {
        "model": "served-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 200, "completion_tokens": 20},
        **more,
    }


def reply(payload: bytes, status: int = 200, headers: str = "", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload) if length is None else length}\r\n{headers}"
    if "Content-Type" not in headers:
        head += "Content-Type: application/json\r\n"
    return f"{head}\r\n".encode() + payload


class Loopback:
    """Answers every request after `latency_s`; a share `fault_rate` of them badly.

    Runs in a thread of its own between entering and leaving; `url` is its base URL.
    """

    def __init__(
        self,
        latency_s: float = 0.0,
        fault_rate: float = 0.0,
        faults: Sequence[str] = FAULTS,
        retry_after_s: float = 1.0,
        answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]] | None = None,
    ) -> None:
        self.latency_s, self.fault_rate, self.faults = latency_s, fault_rate, faults
        self.retry_after_s = retry_after_s
        self.answer = answer or (lambda body: (200, completion(f"echo {body['messages'][-1]['content']}")))
        self.answered: Counter[str] = Counter()  # good answers and refusals, by question and sample
        self.met: Counter[str] = Counter()  # faults
        self.requests = 0
        self._rng = random.Random(0)
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        print(self.port, flush=True)
        await self._end.wait()
        server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.partition("content-length:")[2].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                self.requests += 1
                await asyncio.sleep(self.latency_s)
                fault = self._rng.choice(self.faults) if self._rng.random() < self.fault_rate else ""
                self.met[fault] += bool(fault)
                if fault == "connection reset":
                    writer.transport.abort()
                    return
                writer.write(self._respond(fault, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _respond(self, fault: str, body: dict[str, Any]) -> bytes:
        status, told = self.answer(body)
        if fault in ("", "refusal") and status == 200:
            self.answered[f"{body['messages'][-1]['content']} #{body['seed']}"] += 1
        payload = json.dumps(told).encode()
        match fault:
            case "rate limit":
                return reply(b'{"error": {"message": "slow down"}}', 429)
            case "rate limit with Retry-After":
                return reply(
                    b'{"error": {"message": "slow down"}}', 429, f"Retry-After: {self.retry_after_s}\r\n"
                )
            case "server error":
                return reply(b"oh no", 500)
            case "stalled body":
                return reply(payload[:20], length=len(payload))
            case "truncated JSON":
                return reply(payload[: len(payload) // 2])
            case "wrong content type":
                return reply(b"<html>welcome</html>", headers="Content-Type: text/html\r\n")
            case "empty choices":
                return reply(json.dumps({**told, "choices": []}).encode())
            case "refusal":
                return reply(json.dumps(completion(None)).encode())
        return reply(payload, status, self._retry_after() if status == 429 else "")

    def _retry_after(self) -> str:
        return f"Retry-After: {self.retry_after_s}\r\n"


if __name__ == "__main__":
    asyncio.run(Loopback(float(sys.argv[1])).serve())
