"""Stoker, measured by its own benchmark."""

import glob
import json
import os
import tempfile

from .commands import CONTEXT, FOLDER, Failed, run, say


class Stoker:
    name = "Stoker"
    formats = {"int8": 8, "int4": 4}
    tests = [0, 1, 8, 32]
    cache = os.path.join(FOLDER, "models")

    def __init__(self, folder):
        self.program = os.path.join(folder, "stoker-worker")

    def prepare(self):
        return "Stoker " + run([self.program, "--version"]).split()[1]

    def model(self):
        """Returns the file of the random weights, in Q8_0, which Stoker writes once."""
        files = glob.glob(os.path.join(self.cache, "random-tinyllama-1.1b-v*.gguf"))
        if not files:
            say("writing the random weights")
            self.bench(["--batch", "1", "--context", "8"])
            return self.model()
        return max(files, key=os.path.getmtime)

    def measure(self, quantization, tests):
        return {test: self.rate(["--quantize", quantization], test) for test in tests}

    def rate(self, flags, test):
        if test > 0:
            batch, context, key = test, CONTEXT, "decode_tokens_per_second"
        else:
            # The context is the one in the middle of the 64 tokens after the prompt.
            batch, context, key = 1, CONTEXT + 32, "prefill_tokens_per_second"
        row = self.bench([*flags, "--batch", str(batch), "--context", str(context)])
        if not row[key] or test == 0 and row["prompt_tokens"] != CONTEXT:
            raise Failed(f"stoker-worker measured something else: {row}")
        return row[key]

    def bench(self, flags):
        """Returns the row of a measurement."""
        with tempfile.NamedTemporaryFile() as file:
            output = ["--runs", "1", "--json", file.name]
            run([self.program, "bench", "--format", "gguf", "--cache", self.cache, *output, *flags])
            return json.load(file)[0]
