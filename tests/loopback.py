"""A server on the loopback interface that answers chat completions, with faults if wanted."""

import asyncio
import json
import random
import sys
import threading
from collections import Counter

from cfdistill.teacher import Teacher
from cfdistill.teacher.prompts import render

KEY = "sk-test-planted-0123456789abcdef"


def completion(content, **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 200, "completion_tokens": 20}
    return {"model": "served-model", "choices": [choice], "usage": usage, **more}


def reply(payload, status=200, headers="", length=None, kind="application/json"):
    size = len(payload) if length is None else length
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n{headers}\r\n"
    return head.encode() + payload


REPLIES = {  # by fault: what is sent instead of a good answer
    "rate limit": lambda good: reply(b'{"error": {"message": "slow down"}}', 429),
    "server error": lambda good: reply(f"oh no, {KEY}".encode(), 500),
    "stalled body": lambda good: reply(good[:20], length=len(good)),
    "truncated JSON": lambda good: reply(good[: len(good) // 2]),
    "wrong content type": lambda good: reply(b"<html>welcome</html>", kind="text/html"),
    "empty choices": lambda good: reply(json.dumps({**json.loads(good), "choices": []}).encode()),
    "refusal": lambda good: reply(json.dumps(completion(None)).encode()),
}
FAULTS = (*REPLIES, "rate limit with Retry-After", "connection reset")


def some_prompts(count, task="reason"):
    return [render(task, f"Where is number {i}?", ("here", "there"), 0) for i in range(count)]


def ask(params, asked, handler=None):
    with Teacher(params, handler) as teacher:
        return teacher.ask(asked), teacher


class Loopback:
    """Answers every request after `latency_s` in a thread of its own; a share `fault_rate` of them badly."""

    def __init__(self, latency_s=0.0, fault_rate=0.0, faults=FAULTS, retry_after_s=1.0, answer=None):
        self.latency_s, self.fault_rate, self.faults = latency_s, fault_rate, faults
        self.retry_after = f"Retry-After: {retry_after_s}\r\n"
        self.answer = answer or (lambda body: (200, completion(f"echo {body['messages'][-1]['content']}")))
        self.requests, self.heads = 0, set()  # of requests
        self.answered, self.met = Counter(), Counter()  # good answers by question and sample; faults
        self._rng, self._ready = random.Random(0), threading.Event()

    def __enter__(self):
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)

    async def serve(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=1000)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self._ready.set()
        print(port, flush=True)
        await self._end.wait()
        server.close()

    async def _talk(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = int(head.lower().partition("content-length:")[2].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                self.requests += 1
                self.heads.add(head)
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

    def _respond(self, fault, body):
        status, told = self.answer(body)
        if fault == "rate limit with Retry-After":
            fault, status, told = "", 429, {"error": {"message": "slow down"}}
        if fault in ("", "refusal") and status == 200:
            self.answered[f"{body['messages'][-1]['content']} #{body['seed']}"] += 1
        good = json.dumps(told).encode()
        return REPLIES[fault](good) if fault else reply(good, status, self.retry_after * (status == 429))


if __name__ == "__main__":  # python tests/loopback.py LATENCY_S: prints its port, serves until it is killed
    asyncio.run(Loopback(float(sys.argv[1])).serve())
