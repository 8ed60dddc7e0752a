"""Measures a Llama with random bf16 weights, a static cache and a compiled step in transformers. Prints one line of JSON."""

import json
import os
import signal
import statistics
import sys
import time

WARM_UP = 12
MEASURED = 48


def main():
    job = json.loads(sys.argv[1])

    def time_out(*_):
        print(json.dumps({"missing": f"timed out after {job['seconds']} s"}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGALRM, time_out)
    signal.alarm(job["seconds"])
    try:
        import torch
        import transformers
        from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
    except ImportError as error:
        print(json.dumps({"missing": f"{error.name or error} is not installed"}))
        return
    device = job["device"]
    cuda = device.startswith("cuda")
    if cuda and not torch.cuda.is_available():
        print(json.dumps({"missing": "PyTorch sees no GPU"}))
        return

    shape = {key: value for key, value in job.items() if key not in ("context", "batches", "device", "seconds")}
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16).eval()
    step = torch.compile(model, mode="reduce-overhead", fullgraph=True) if cuda else model

    def now():
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    rows = []
    with torch.inference_mode():
        for batch in job["batches"]:
            begin = job["context"] - MEASURED // 2
            length = begin + WARM_UP + MEASURED
            prompt = torch.randint(0, shape["vocab_size"], (batch, begin), device=device)
            cache = StaticCache(config=model.config, max_cache_len=length)
            times = []
            for _ in range(3):
                cache.reset()
                begun = now()
                positions = torch.arange(begin, device=device)
                logits = model(prompt, past_key_values=cache, cache_position=positions, logits_to_keep=1).logits
                token = logits[:, -1:].argmax(-1)
                times.append(now() - begun)
            prefill = batch * begin / min(times)
            times = []
            for i in range(WARM_UP + MEASURED):
                begun = now()
                position = torch.tensor([begin + i], device=device)
                logits = step(token.clone(), past_key_values=cache, cache_position=position).logits
                token = logits[:, -1:].argmax(-1)
                times.append(now() - begun)
            decode = batch / statistics.median(times[WARM_UP:])
            rows.append(
                {"batch": batch, "prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode}
            )
    how = "compiled" if cuda else "not compiled"
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    versions = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"
    print(json.dumps({"measured": {"with": f"{versions}, bf16, {how}, on {name}", "rows": rows}}))


main()
