"""llama.cpp, as built for node-llama-cpp, measured by a program that calls its library. It quantizes for others too."""

import glob
import json
import os

from .commands import DRIVERS, FOLDER, THREADS, once, rates, run, say


class LlamaCpp:
    name = "llama.cpp"
    formats = {"Q8_0": 8, "Q4_0": 4, "Q4_K_M": 4}
    tests = [0, 1, 8, 32]
    # The library, with kernels for each kind of processor, and its source, for the headers of the same version.
    libraries, source = "@node-llama-cpp/linux-x64@3.22.1", "node-llama-cpp@3.22.1"

    def __init__(self, stoker):
        self.stoker = stoker
        self.folder = os.path.join(FOLDER, "llama.cpp")

    def prepare(self):
        version = self.install()
        self.models = {quantization: self.model(quantization) for quantization in self.formats}
        return version

    def install(self):
        """Installs it, with the programs that call it. Returns the version."""
        once(self.folder, f"{self.libraries} {self.source}", self.download)
        for name in ("llama_cpp_bench", "llama_cpp_quantize"):
            self.compile(name)
        with open(self.path("libraries", "_nlcBuildMetadata.json")) as file:
            release = json.load(file)["buildOptions"]["llamaCpp"]["release"]
        backend = run([self.path("llama_cpp_bench"), self.path("libraries")]).strip()
        return f"llama.cpp {release} ({self.source}, {backend})"

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def download(self, _):
        self.unpack(self.libraries, "package/bins/linux-x64", "libraries")
        self.unpack(self.source, "package/llama", "source")
        clone = self.path("source", "llama.cpp")
        run(["git", "clone", "--quiet", "--no-checkout", self.path("source", "gitRelease.bundle"), clone])
        run(["git", "-C", clone, "checkout", "--quiet", "HEAD", "--", "include", "ggml/include"])

    def unpack(self, package, files, to):
        """Unpacks a folder of a package."""
        archive = run(["npm", "pack", "--silent", package], cwd=self.folder).split()[-1]
        os.makedirs(self.path(to))
        depth = len(files.split("/"))
        run(["tar", "-xf", archive, "-C", to, f"--strip-components={depth}", files], cwd=self.folder)
        os.remove(self.path(archive))

    def compile(self, name):
        include = [f"-I{self.path('source', 'llama.cpp', folder)}" for folder in ("include", "ggml/include")]
        # Their names end with the version, or have none.
        libraries = [glob.glob(self.path("libraries", f"lib{one}.*so"))[0] for one in ("llama", "ggml", "ggml-base")]
        search = f"-Wl,-rpath,{self.path('libraries')}"
        source = os.path.join(DRIVERS, f"{name}.c")
        run(["gcc", "-O2", "-o", self.path(name), source, *include, *libraries, search])

    def model(self, quantization):
        """Returns the file of the model in this format, quantized once from Stoker's."""
        original = self.stoker.model()
        if quantization == "Q8_0":
            return original
        folder = os.path.splitext(original)[0]
        model = os.path.join(folder, f"{quantization}.gguf")
        if not os.path.exists(model):
            say(f"writing {os.path.relpath(model)}")
            os.makedirs(folder, exist_ok=True)
            partial = f"{model}.partial"
            run([self.path("llama_cpp_quantize"), original, partial, quantization, str(THREADS)])
            os.rename(partial, model)
        return model

    def measure(self, quantization, tests):
        command = [self.path("llama_cpp_bench"), self.path("libraries"), self.models[quantization], str(THREADS)]
        return rates(run([*command, *map(str, tests)]), tests)
