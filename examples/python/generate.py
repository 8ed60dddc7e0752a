"""Streams the completion of a prompt."""

import argparse
import sys

import grpc
from contract import add_connection_flags, channel, explain, messages, services

flags = argparse.ArgumentParser(description=__doc__)
flags.add_argument("prompt")
add_connection_flags(flags)
flags.add_argument("--max-tokens", type=int, default=200, metavar="TOKENS")
flags.add_argument("--temperature", type=float, default=0.5, metavar="NUMBER")
flags.add_argument("--seed", type=int, metavar="NUMBER")
flags = flags.parse_args()

request = messages.GenerateRequest(
    prompt=flags.prompt,
    sampling=messages.Sampling(temperature=flags.temperature, seed=flags.seed),
    stopping=messages.Stopping(max_tokens=flags.max_tokens),
)
with channel(flags) as connection:
    try:
        for event in services.InferenceStub(connection).Generate(request, timeout=60):
            print(event.token.text, end="", flush=True)
    except grpc.RpcError as error:
        sys.exit(explain(error))
print()
