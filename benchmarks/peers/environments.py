"""One virtual environment per peer under .bench/, made with pip, which compiles the bytecode."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH_DIR = ROOT / ".bench"


@dataclass(frozen=True)
class Environment:
    """A peer's packages; torch comes pinned from constraints.txt so that no CUDA build arrives."""

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return BENCH_DIR / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("sb3", ("torch", "stable-baselines3==2.9.2")),
        Environment("cleanrl", ("torch", "gymnasium==1.4.0", "numpy>=2")),
        Environment("rllib", ("torch", "ray[rllib]==2.60.0")),
        Environment("d3rlpy", ("torch", "d3rlpy==2.8.1")),
    )
}


def torch_pins(constraints: str) -> list[str]:
    """The lines of constraints.txt that pin torch; a peer brings its own gymnasium and pandas."""
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    return [line for line in lines if line.split("==")[0].strip() == "torch"]


def ensure(environment: Environment) -> Path:
    """The peer's python, made first if it is not there or its packages changed."""
    pins = torch_pins((ROOT / "constraints.txt").read_text())
    wanted = {"packages": list(environment.packages), "pins": pins, "python": sys.version}
    stamp = environment.folder / "millrace-bench.json"
    if stamp.exists() and json.loads(stamp.read_text()).get("wanted") == wanted:
        return environment.python
    print(f"making {environment.folder} ({', '.join(environment.packages)})", flush=True)
    if environment.folder.exists():
        shutil.rmtree(environment.folder)
    BENCH_DIR.mkdir(exist_ok=True)
    pin_file = BENCH_DIR / f"{environment.name}-constraints.txt"
    pin_file.write_text("\n".join(pins) + "\n")
    subprocess.run([sys.executable, "-m", "venv", str(environment.folder)], check=True)
    pip = [str(environment.python), "-m", "pip", "install", "-qq", "--compile"]
    subprocess.run([*pip, "-c", str(pin_file), *environment.packages], check=True)
    library = str(environment.folder / "lib")
    compile_all = [str(environment.python), "-m", "compileall", "-q", library]
    subprocess.run(compile_all, check=False, stdout=subprocess.DEVNULL)
    stamp.write_text(json.dumps({"wanted": wanted, "versions": versions(environment)}, indent=1))
    return environment.python


def versions(environment: Environment) -> dict[str, str]:
    """What pip resolved, name to version."""
    command = [str(environment.python), "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {row["name"]: row["version"] for row in json.loads(listed)}
