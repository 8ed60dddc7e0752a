"""Streams conversations at the same time with OpenAI's client, and prints their texts as one JSON array.

    python deploy/openai/streams.py http://127.0.0.1:8000/v1

Prints `streaming` once every stream has some text and none has ended: a test then kills a worker, and compares the
texts with those of an undisturbed cluster.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI

STREAMS, TOKENS, SOME = 8, 400, 20

if len(sys.argv) != 2:
    sys.exit("usage: streams.py http://HOST:PORT/v1")


async def stream(client, seed, gate):
    chunks = await client.chat.completions.create(
        model="storyteller",
        messages=[{"role": "user", "content": "Once upon a time"}],
        max_tokens=TOKENS,
        seed=seed,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces, finish_reason = [], None
    async for chunk in chunks:
        choice = chunk.choices[0]
        pieces.append(choice.delta.content or "")
        finish_reason = choice.finish_reason or finish_reason
        if len(pieces) == SOME:
            await gate.wait()
    assert finish_reason == "length", finish_reason
    return "".join(pieces)


async def main():
    # Retries would hide a lost stream.
    async with AsyncOpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0, timeout=120) as client:
        gate = Gate(STREAMS)
        texts = await asyncio.gather(*(stream(client, seed, gate) for seed in range(STREAMS)))
    print(json.dumps(texts))


class Gate:
    """Opens when every stream has come to it, and says so."""

    def __init__(self, streams):
        self.missing, self.open = streams, asyncio.Event()

    async def wait(self):
        self.missing -= 1
        if self.missing == 0:
            print("streaming", flush=True)
            self.open.set()
        await self.open.wait()


asyncio.run(main())
