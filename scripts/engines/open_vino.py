"""OpenVINO GenAI, measured by a program that schedules sequences as a server does."""

import os

from .commands import DRIVERS, THREADS, once, python_with, rates, run


class OpenVino:
    name = "OpenVINO"
    formats = {"int8": 8, "int4": 4}
    tests = [0, 1, 8, 32]
    packages = ["openvino-genai==2026.4.1.0", "openvino==2026.4.1", "nncf==3.4.0"]
    # It sends no telemetry where CI is set.
    environment = {**os.environ, "CI": "true"}

    def __init__(self, llama_cpp):
        self.llama_cpp = llama_cpp

    def prepare(self):
        self.llama_cpp.install()
        self.python = python_with(self.packages, "openvino")
        folder = os.path.splitext(self.llama_cpp.model("Q8_0"))[0]
        self.folder = once(os.path.join(folder, "openvino"), " ".join(self.packages), self.convert)
        return f"OpenVINO GenAI {self.packages[0].split('==')[1]}"

    def convert(self, folder):
        # From 16 bits: of formats with 8 and 4, those that OpenVINO makes itself are its fastest.
        model = self.llama_cpp.model("F16")
        folders = [os.path.join(folder, quantization) for quantization in self.formats]
        convert = os.path.join(DRIVERS, "open_vino_convert.py")
        run([self.python, convert, model, *folders], env=self.environment)
        os.remove(model)

    def measure(self, quantization, tests):
        bench = os.path.join(DRIVERS, "open_vino_bench.py")
        command = [self.python, bench, os.path.join(self.folder, quantization), str(THREADS), *map(str, tests)]
        return rates(run(command, env=self.environment), tests)
