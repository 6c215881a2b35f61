"""What `millrace doctor` looks at: one function a check, none of which raises."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workflows.output import bytes_text

State = Literal["ok", "warn", "fail"]

MIN_SHM_BYTES = 256 << 20
WANTED_SHM_BYTES = 1 << 30
MIN_MEMORY_BYTES = 1 << 30
WANTED_MEMORY_BYTES = 4 << 30
WANTED_DISK_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's: what was looked at, how it is, and what to do about it."""

    check: str
    state: State
    what: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def all_findings(storage: Path) -> Iterator[Finding]:
    """Every check, in the order in which the parts build on each other."""
    yield python()
    yield from packages()
    yield from torch_build()
    yield ray_import()
    yield cores()
    yield memory()
    yield shared_memory()
    yield storage_writable(storage)
    yield ray_session()
    yield ray_token()


def python(
    version: tuple[int, ...] = tuple(map(int, platform.python_version_tuple()[:2])),
) -> Finding:
    """The interpreter."""
    text = f"{platform.python_implementation()} {platform.python_version()}"
    if version < (3, 11):
        return Finding("python", "fail", text, "make an environment with Python 3.11 or later")
    return Finding("python", "ok", text)


def packages() -> Iterator[Finding]:
    """Whether everything that Millrace needs is there, Ray's extras included, in its range."""
    from workflows.packages import find, of_extras, own_requirements

    for requirement in own_requirements():
        found = find(requirement)
        wanted = str(requirement).partition(";")[0].strip()
        fix = f"pip install '{wanted}'"
        if found.version is None:
            yield Finding(requirement.name, "fail", "not installed", fix)
            continue
        missing = [part for part in of_extras(requirement) if not part.fits]
        if not found.fits:
            what = f"{found.version} is outside {requirement.specifier}"
            yield Finding(requirement.name, "fail", what, fix)
        elif missing:
            names = ", ".join(f"{part.requirement.name} {part.version or ''}" for part in missing)
            yield Finding(requirement.name, "fail", f"lacks {names.strip()}", fix)
        else:
            yield Finding(requirement.name, "ok", found.version)


def torch_build() -> Iterator[Finding]:
    """Whether torch loads, and whether it can use the GPUs there are."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
        yield Finding("torch loads", "fail", f"{type(error).__name__}: {error}", "reinstall torch")
        return
    build = torch.version.cuda or torch.version.hip or "cpu"
    yield Finding("torch loads", "ok", f"{torch.__version__}, built for {build}")
    count = torch.cuda.device_count()
    if count:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        yield Finding("gpu", "ok", f"{count}: {names}")
    elif shutil.which("nvidia-smi"):
        fix = "install torch for CUDA (https://pytorch.org), or check the driver with nvidia-smi"
        yield Finding("gpu", "warn", "nvidia-smi is here, but torch sees no GPU", fix)
    else:
        yield Finding("gpu", "ok", "none; learners run on the CPU")


def ray_import() -> Finding:
    """Whether the parts of Ray that Millrace uses load."""
    try:
        import ray
        import ray.data
        import ray.train.torch
    except Exception as error:  # noqa: BLE001 - whatever it raises is the finding
        fix = "pip install 'ray[default,data,train,tune]'"
        return Finding("ray loads", "fail", f"{type(error).__name__}: {error}", fix)
    return Finding("ray loads", "ok", f"{ray.__version__} with ray.data and ray.train")


def cores() -> Finding:
    """CPU cores this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if count == 1:
        fix = "it works; rollouts and learner take turns"
        return Finding("cores", "warn", "1", fix)
    return Finding("cores", "ok", str(count))


def memory(available: int | None = None) -> Finding:
    """Memory that is free, within the limit of the container."""
    available = available_memory_bytes() if available is None else available
    if available is None:
        return Finding("memory", "ok", "unknown on this system")
    what, fix = (
        f"{bytes_text(available)} free",
        "end other programs, or raise the container's limit",
    )
    if available < MIN_MEMORY_BYTES:
        return Finding("memory", "fail", what, fix)
    state: State = "warn" if available < WANTED_MEMORY_BYTES else "ok"
    return Finding("memory", state, what, fix if state == "warn" else "")


def available_memory_bytes() -> int | None:
    """What /proc/meminfo calls available, or less where a cgroup limits it; None without /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        table = {
            name: int(rest.split()[0]) << 10 for name, _, rest in (x.partition(":") for x in lines)
        }
        free = table["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return free
    return min(free, limit - used)


def shared_memory(path: Path = Path("/dev/shm")) -> Finding:
    """Where Ray's object store lies."""
    fix = "start the container with --shm-size=2g; until then Ray uses /tmp, which is slower"
    if not path.is_dir():
        return Finding("shared memory", "fail", f"there is no {path}", fix)
    free = shutil.disk_usage(path).free
    what = f"{bytes_text(free)} free in {path}"
    if free < MIN_SHM_BYTES:
        return Finding("shared memory", "fail", what, fix)
    state: State = "warn" if free < WANTED_SHM_BYTES else "ok"
    return Finding("shared memory", state, what, fix if state == "warn" else "")


def storage_writable(storage: Path) -> Finding:
    """Whether runs can be written, by writing a file where they would go."""
    existing = storage
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    fix = "give another --storage, or this user write permission there"
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".millrace-doctor-"):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Finding("storage", "fail", f"{storage}: {error.strerror}", fix)
    what = f"{storage} is writable, {bytes_text(free)} free"
    if free < WANTED_DISK_BYTES:
        return Finding("storage", "warn", what, "make room, or set checkpoint.keep")
    return Finding("storage", "ok", what)


def ray_session(
    address: str | None = None, file: Path = Path("/tmp/ray/ray_current_cluster")
) -> Finding:
    """Whether a run would join a Ray that is there already, or start its own."""
    address = os.environ.get("RAY_ADDRESS") if address is None else address
    if address:
        fix = "unset RAY_ADDRESS to start a Ray per run"
        return Finding("ray session", "warn", f"RAY_ADDRESS is {address!r}: runs join it", fix)
    try:
        found = file.read_text().strip()
    except OSError:
        return Finding("ray session", "ok", "none; every run starts its own")
    fix = "`ray stop` ends it, or give --ray-address auto to use it"
    return Finding("ray session", "warn", f"`ray start` left one at {found!r}", fix)


def ray_token(path: Path | None = None) -> Finding:
    """Whether others on this machine can read the token that opens this user's Ray."""
    path = Path.home() / ".ray" / "auth_token" if path is None else path
    try:
        mode = path.stat().st_mode
    except OSError:
        return Finding("ray token", "ok", "none yet; Ray makes one")
    if mode & 0o077:
        what = f"{path} can be read by others (mode {mode & 0o777:04o})"
        return Finding("ray token", "warn", what, f"chmod 600 {path}")
    return Finding("ray token", "ok", f"{path} is this user's only")
