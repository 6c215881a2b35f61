"""Configuration files: strict YAML and JSON from disk or the web, and local Python."""

import difflib
import hashlib
import importlib.util
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pipelines.config import AlgorithmConfig
from pipelines.config_errors import ConfigError, Problem, printable, shown
from pipelines.strict_json import parse_json
from pipelines.strict_text import MAX_BYTES, Document, decode
from pipelines.strict_yaml import parse_yaml

SUFFIXES = (".yaml", ".yml", ".json", ".py")
TIMEOUT_S = 10.0
MAX_FETCH_S = 30.0


@dataclass(frozen=True)
class ConfigFile:
    """What a file asks for.

    Attributes:
        values: the configuration's own keys, `algo` and `stop` among them.
        description: what the file is for.
        measured: what a run of it gave: returns, steps, seconds, machine.
        path: where it was read; an address without its credentials and query.
        lines: dotted path of each key → line, from 1; empty for Python.
    """

    values: Mapping[str, Any]
    description: str
    measured: Mapping[str, Any]
    path: str
    lines: Mapping[str, int] = field(default_factory=dict)


def load_config_file(source: str | Path) -> ConfigFile:
    """Read a configuration from a path or an http(s) address.

    Args:
        source: ends in .yaml, .yml or .json; or .py for a local file that defines `config`.

    Raises:
        ConfigError: with file:line and what to write instead. The keys' names and values are
            checked later, by `build_config`.
    """
    parts = urlsplit(str(source))
    if parts.scheme in ("http", "https"):
        name = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        suffix = _suffix(parts.path, name)
        if "@" in parts.netloc:
            fix = "download the file and give its path"
            raise ConfigError(Problem(name, "an address with a password in it is not used", fix))
        if suffix == ".py":
            what = "Python from an address is not run"
            raise ConfigError(Problem(name, what, "download it, read it, and give its path"))
        return _from_text(decode(_fetch(str(source), name), name=name), name=name, suffix=suffix)
    if "://" in str(source):
        what = f"an address of kind {printable(parts.scheme)}"
        raise ConfigError(Problem(printable(str(source)), what, "give a path, or http(s)"))
    path = Path(source).expanduser()
    name = printable(str(source), limit=400)
    suffix = _suffix(str(path), name)
    data = _read(path, name)
    if suffix == ".py":
        return _from_python(path, name)
    return _from_text(decode(data, name=name), name=name, suffix=suffix)


def _suffix(path: str, name: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            Problem(name, f"a file ending in {suffix or 'nothing'}", f"give {', '.join(SUFFIXES)}")
        )
    return suffix


def _from_text(text: str, *, name: str, suffix: str) -> ConfigFile:
    if text.lstrip()[:1] == "<":
        what = "this is a web page (it starts with '<')"
        raise ConfigError(Problem(f"{name}:1", what, "give the address of the raw file"))
    parse = parse_json if suffix == ".json" else parse_yaml
    document = parse(text, name=name)
    return ConfigFile(
        description=_taken(document, "description", str, "", name=name),
        measured=_taken(document, "measured", dict, {}, name=name),
        values=document.values,
        path=name,
        lines=document.lines,
    )


def _taken(document: Document, key: str, kind: type, default: Any, *, name: str) -> Any:
    value = document.values.pop(key, default)
    if not isinstance(value, kind):
        where = f"{name}:{document.lines[key]}: {key}"
        wanted = "text" if kind is str else "a mapping"
        raise ConfigError(Problem(where, f"got {shown(value)}, expected {wanted}"))
    return value


def _read(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise ConfigError(Problem(name, "a folder", "give a file in it"))
        if path.exists() and not path.is_file():
            raise ConfigError(Problem(name, "no regular file"))
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(Problem(name, "no such file", _names_beside(path))) from None
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(name, f"cannot be read: {error}")) from None


def _names_beside(path: Path) -> str:
    try:
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES)
    except OSError:
        return f"there is no folder {printable(str(path.parent), limit=400)} either"
    close = difflib.get_close_matches(path.name, names, n=1) or names[:5]
    return f"beside it there is {', '.join(map(printable, close))}" if close else ""


def _fetch(url: str, name: str) -> bytes:
    # Only needed for addresses, and slow to import.
    import http.client
    import urllib.error
    import urllib.request as web

    # Not urlopen: it would also follow a redirect to ftp.
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler(),
        web.HTTPHandler(),
        web.HTTPSHandler(),
        web.HTTPDefaultErrorHandler(),
        web.HTTPRedirectHandler(),
        web.HTTPErrorProcessor(),
        web.UnknownHandler(),
    ):
        opener.add_handler(handler)
    deadline = time.monotonic() + MAX_FETCH_S
    data = b""
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            while len(data) <= MAX_BYTES and (part := response.read1(65536)):
                data += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"took longer than {MAX_FETCH_S:g} s")
    except urllib.error.HTTPError as error:
        raise ConfigError(
            Problem(name, f"the server answers {error.code} {error.reason}")
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(Problem(name, f"cannot be fetched: {reason}")) from None
    except (http.client.HTTPException, ValueError) as error:
        # Their messages have the address in them, and with it any token.
        what = f"cannot be fetched: {type(error).__name__}"
        raise ConfigError(Problem(name, what)) from None
    return data


def _from_python(path: Path, name: str) -> ConfigFile:
    module = _imported(path, name)
    config = getattr(module, "config", None)
    if not isinstance(config, AlgorithmConfig):
        what = (
            f"`config` is {type(config).__name__}" if hasattr(module, "config") else "no `config`"
        )
        raise ConfigError(Problem(name, what, 'define config = PPOConfig(env="CartPole-v1")'))
    return ConfigFile(
        values=config.model_dump(),
        description=(module.__doc__ or "").strip(),
        measured=getattr(module, "measured", {}),
        path=name,
    )


def _imported(path: Path, name: str) -> ModuleType:
    # A name of its own, so that a file called torch.py shadows nothing.
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"millrace_config_{digest}", path)
    assert spec is not None, "the suffix is .py"
    assert spec.loader is not None, "the suffix is .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(_blame(error, path, name)) from error
    return module


def _blame(error: Exception, path: Path, name: str) -> Problem:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return Problem(f"{name}:{error.lineno}", f"no Python: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), 1)
    fix = "is its folder on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
    what = f"raises {type(error).__name__}: {error}"
    return Problem(f"{name}:{line}", what, fix)
