"""Streams the completion of a prompt."""

import argparse
import sys

import grpc
from contract import explain, messages, services

flags = argparse.ArgumentParser(description=__doc__)
flags.add_argument("prompt")
flags.add_argument("--endpoint", default="127.0.0.1:50051", metavar="ADDR")
flags.add_argument("--max-tokens", type=int, default=200, metavar="TOKENS")
flags.add_argument("--temperature", type=float, default=0.5, metavar="NUMBER")
flags.add_argument("--seed", type=int, metavar="NUMBER")
flags = flags.parse_args()

request = messages.GenerateRequest(
    prompt=flags.prompt,
    sampling=messages.Sampling(temperature=flags.temperature, seed=flags.seed),
    stopping=messages.Stopping(max_tokens=flags.max_tokens),
)
with grpc.insecure_channel(flags.endpoint) as channel:
    try:
        for event in services.InferenceStub(channel).Generate(request, timeout=60):
            print(event.token.text, end="", flush=True)
    except grpc.RpcError as error:
        sys.exit(explain(error))
print()
