"""Measures mistral.rs: tokens per second of a prompt of 512 tokens (test 0), or of one sequence that decodes (test 1).

    RUST_LOG=error python mistral_rs_bench.py MODEL.gguf TEST...

Prints a JSON object: the rate of each test.
"""

import json
import os
import random
import statistics
import sys

from mistralrs import CompletionRequest, Runner, Which

CONTEXT, STEPS, RUNS = 512, 32, 3


def main():
    folder, file = os.path.split(sys.argv[1])
    which = Which.GGUF(quantized_model_id=folder, quantized_filename=file)
    # Without the cache of prefixes, which would shorten prompts.
    runner = Runner(which=which, max_seqs=1, prefix_cache_n=0)
    complete(runner, CONTEXT, 2)  # The first one also allocates.
    # Contexts are as long as `CONTEXT` on average.
    runs = {"0": lambda: prompt_rate(complete(runner, CONTEXT, 1)),
            "1": lambda: decode_rate(complete(runner, CONTEXT - STEPS // 2, STEPS))}  # fmt: skip
    print(json.dumps({test: statistics.median(runs[test]() for _ in range(RUNS)) for test in sys.argv[2:]}))


def complete(runner, prompt_tokens, new_tokens):
    # Every letter with the space before it is a token of the model.
    words = random.choices("abcdefghijklmnopqrstuvwxyz", k=prompt_tokens)
    request = CompletionRequest(model="default", prompt=" ".join(words), max_tokens=new_tokens, temperature=0.0,
                                ignore_eos=True)  # fmt: skip
    usage = runner.send_completion_request(request).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt_tokens, new_tokens), usage
    return usage


def prompt_rate(usage):
    return usage.prompt_tokens / usage.total_prompt_time_sec


def decode_rate(usage):
    # The prompt gave the first token.
    return (usage.completion_tokens - 1) / usage.total_completion_time_sec


main()
