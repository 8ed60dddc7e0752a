"""Sends many requests concurrently, and prints a JSON object for each when it ends."""

import argparse
import asyncio
import hashlib
import json
import sys
import time

import grpc
from contract import add_connection_flags, channel, explain, messages, services

flags = argparse.ArgumentParser(description=__doc__)
add_connection_flags(flags)
flags.add_argument("--concurrency", type=int, default=8, metavar="STREAMS", help="number of concurrent requests")
flags.add_argument("--requests", type=int, metavar="COUNT", help="in total [default: --concurrency]")
flags.add_argument("--prompt", default="Once upon a time", metavar="TEXT")
flags.add_argument("--max-tokens", type=int, default=64, metavar="TOKENS")
flags.add_argument("--seed", type=int, default=0, metavar="NUMBER", help="request i has this seed plus i")
flags.add_argument("--deadline", type=float, default=120, metavar="SECONDS")
flags = flags.parse_args()


async def generate(stub, index: int) -> dict:
    """Sends one request, and returns its outcome."""
    request = messages.GenerateRequest(
        prompt=flags.prompt,
        sampling=messages.Sampling(seed=flags.seed + index),
        stopping=messages.Stopping(max_tokens=flags.max_tokens),
    )
    outcome = {"index": index, "seed": flags.seed + index}
    started, first, text, end = time.monotonic(), None, "", None
    try:
        async for event in stub.Generate(request, timeout=flags.deadline):
            kind = event.WhichOneof("event")
            if kind == "accepted":
                outcome["worker"] = event.accepted.worker
            elif kind == "token":
                first = first or time.monotonic()
                text += event.token.text
            elif kind == "finished":
                end = event.finished
    except grpc.RpcError as error:
        return outcome | {"error": error.code().name, "message": explain(error)}
    if end is None:
        return outcome | {"error": "UNAVAILABLE", "message": "the stream ended early"}
    return outcome | {
        "completion_tokens": end.usage.completion_tokens,
        "finish_reason": messages.FinishReason.Name(end.reason),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "first_token_seconds": round((first or time.monotonic()) - started, 6),
        "seconds": round(time.monotonic() - started, 6),
    }


async def main() -> bool:
    """Sends all requests, and returns whether every one succeeded."""
    indices = iter(range(flags.requests or flags.concurrency))
    succeeded = True
    async with channel(flags, grpc.aio) as connection:
        stub = services.InferenceStub(connection)

        async def stream():
            nonlocal succeeded
            for index in indices:
                outcome = await generate(stub, index)
                succeeded &= "error" not in outcome
                print(json.dumps(outcome), flush=True)

        await asyncio.gather(*(stream() for _ in range(flags.concurrency)))
    return succeeded


sys.exit(0 if asyncio.run(main()) else 1)
