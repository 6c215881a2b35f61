"""Processes that begin the same work at the same moment."""

import subprocess
import sys

_START = "import sys, deltalake\nprint('ready', flush=True)\nsys.stdin.readline()\n"


def race(preparation: str, work: str, arguments: list[list[str]]) -> list[str]:
    """What each process prints that runs `work` once all of them are through `preparation`."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", f"{preparation}\n{_START}{work}"]
    processes = [
        subprocess.Popen([*command, *given], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for given in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=120) for process in processes]
    errors = "".join(text for _, text in results)
    if errors:
        raise AssertionError(errors)
    return [printed for printed, _ in results]
