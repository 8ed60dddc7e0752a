"""What the engines have in common: commands that may fail, and what is installed once."""

import json
import os
import shutil
import signal
import subprocess
import sys

# Where everything is installed.
FOLDER = os.path.abspath("target/race-engines")
DRIVERS = os.path.dirname(os.path.abspath(__file__))
THREADS = len(os.sched_getaffinity(0))
CONTEXT = 512


class Failed(Exception):
    """What could not be done, and why."""


def say(text):
    print(f"race-engines: {text}", file=sys.stderr, flush=True)


def run(command, limit=3600, **options):
    """Returns what a command prints to standard output. It may take `limit` seconds."""
    name = os.path.basename(command[0])
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": limit, **options}
    try:
        done = subprocess.run(command, **options)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{name} did not end within {limit} s") from error
    if done.returncode == 0:
        return done.stdout
    output = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    print(*output[-20:], sep="\n", file=sys.stderr)
    code = done.returncode
    raise Failed(f"{name} ended with {code if code > 0 else signal.Signals(-code).name}: {output[-1].strip()}")


def rates(output, tests):
    """Returns the rate of each test, which a program printed last."""
    try:
        found = json.loads(output.splitlines()[-1])
        return {test: float(found[str(test)]) for test in tests}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"no rates in {output[-200:]!r}") from error


def once(folder, version, make):
    """Lets `make` fill a folder, unless an earlier run has done so with the same version. Returns the folder."""
    mark = os.path.join(folder, "made-with")
    if os.path.exists(mark):
        with open(mark) as file:
            if file.read() == version:
                return folder
    say(f"making {os.path.relpath(folder)} with {version}")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    make(folder)
    with open(mark, "w") as file:
        file.write(version)
    return folder


def python_with(packages, folder):
    """Returns a Python that has these packages, in an environment of its own."""
    def make(folder):
        run([sys.executable, "-m", "venv", folder])
        run([os.path.join(folder, "bin", "pip"), "install", "--quiet", *packages])

    return os.path.join(once(os.path.join(FOLDER, folder), " ".join(packages), make), "bin", "python")
