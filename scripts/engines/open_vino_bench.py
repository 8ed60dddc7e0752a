"""Measures OpenVINO GenAI: tokens per second of a prompt of 512 tokens (test 0), or of N sequences that decode (N).

    python open_vino_bench.py FOLDER THREADS TEST...

Prints a JSON object: the rate of each test.
"""

import json
import statistics
import sys
import time

import numpy
import openvino
import openvino_genai

CONTEXT, STEPS, RUNS = 512, 32, 3


def main():
    folder, threads, *tests = sys.argv[1:]
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2  # GiB
    scheduler.max_num_batched_tokens = CONTEXT
    properties = {"INFERENCE_NUM_THREADS": int(threads)}
    pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
    prompt_seconds(pipeline)  # The first one also allocates.
    rates = {}
    for test in map(int, tests):
        rates[test] = decode_rate(pipeline, test) if test else prompt_rate(pipeline)
    print(json.dumps(rates))


def prompt_rate(pipeline):
    return CONTEXT / statistics.median(prompt_seconds(pipeline) for _ in range(RUNS))


def prompt_seconds(pipeline):
    request = add(pipeline, 0, CONTEXT, 1)
    begun = time.perf_counter()
    while not request.can_read():
        pipeline.step()
    seconds = time.perf_counter() - begun
    finish(pipeline, [request])
    return seconds


def decode_rate(pipeline, sequences):
    # Contexts are as long as `CONTEXT` on average. Each step computes a prompt, and decodes the sequences before it, so
    # these have shorter ones.
    begin = CONTEXT - STEPS // 2
    requests = [add(pipeline, i, begin - (sequences - 1 - i), 2 * CONTEXT) for i in range(sequences)]
    waiting = set(range(sequences))
    while waiting:
        pipeline.step()
        waiting = {i for i in waiting if not requests[i].can_read()}
    for request in requests:
        request.read()
    seconds = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        pipeline.step()
        seconds.append(time.perf_counter() - begun)
        for request in requests:
            assert request.can_read() and len(request.read()) == 1, "a step gave no token"
    finish(pipeline, requests)
    return sequences / statistics.median(seconds)


def add(pipeline, number, prompt_tokens, new_tokens):
    config = openvino_genai.GenerationConfig(max_new_tokens=new_tokens, eos_token_id=2, ignore_eos=True)
    tokens = numpy.random.default_rng().integers(300, 30000, (1, prompt_tokens))
    return pipeline.add_request(number, openvino.Tensor(tokens.astype(numpy.int64)), config)


def finish(pipeline, requests):
    for request in requests:
        request.cancel()
    while pipeline.has_non_finished_requests():
        pipeline.step()


main()
