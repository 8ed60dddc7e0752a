"""mistral.rs, measured through its Python package, which sends one request at a time."""

import os

from .commands import DRIVERS, python_with, rates, run


class MistralRs:
    name = "mistral.rs"
    formats = {"Q8_0": 8, "Q4_K_M": 4}
    tests = [0, 1]
    packages = ["mistralrs==0.9.5"]

    def __init__(self, llama_cpp):
        self.llama_cpp = llama_cpp

    def prepare(self):
        self.llama_cpp.install()
        self.models = {quantization: self.llama_cpp.model(quantization) for quantization in self.formats}
        self.python = python_with(self.packages, "mistral.rs")
        return f"mistral.rs {self.packages[0].split('==')[1]}"

    def measure(self, quantization, tests):
        bench = os.path.join(DRIVERS, "mistral_rs_bench.py")
        command = [self.python, bench, self.models[quantization], *map(str, tests)]
        # It logs to standard output.
        return rates(run(command, env={**os.environ, "RUST_LOG": "error"}), tests)
