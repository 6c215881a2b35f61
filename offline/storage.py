"""Where a lake lies: a local folder or s3://bucket/prefix, with its credentials and its errors."""

import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from offline.errors import LakeError
from offline.storage_errors import explain as explain

_SCHEMES: Final = "a folder, file:///folder or s3://bucket/prefix"

_S3_ENVIRONMENT: Final = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("AWS_ALLOW_HTTP", "AWS_S3_ALLOW_UNSAFE_RENAME", "AWS_SKIP_SIGNATURE"),
)

# A store that is slow, or busy for seconds, is borne with; one that is gone is given up within a
# minute. Arrow's own 3 s would refuse every store that takes longer to begin an answer.
_DELTA_PATIENCE: Final = {"max_retries": "20", "retry_timeout": "20s", "timeout": "15s"}
_ANSWER_S: Final = 8.0
_CONNECT_S: Final = 5.0
_ATTEMPTS: Final = 5

_FALSE: Final = frozenset({"", "0", "false", "off", "no", "n", "f"})


@dataclass(frozen=True)
class Storage:
    """A lake's folder. Make one with `Storage.at`; one given as it is must be checked already.

    Attributes:
        uri: an absolute path of this machine, or s3://bucket/prefix; no slash at its end.
        options: delta-rs's storage options, those of the environment included, so that a
            process on another machine has them too; empty for a folder.
    """

    uri: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)

    @classmethod
    def at(
        cls, uri: "str | os.PathLike[str] | Storage", options: Mapping[str, str] | None = None
    ) -> "Storage":
        """The storage at a path or URI.

        Args:
            uri: a folder (~ and file:// are understood) or s3://bucket/prefix.
            options: storage options of delta-rs, as AWS_ENDPOINT_URL; they win over the
                environment.

        Raises:
            LakeError: the address is none, or asks for commits that are not safe.
        """
        if isinstance(uri, Storage):
            return uri if not options else cls.at(uri.uri, {**uri.options, **options})
        text = os.fspath(uri)
        if not isinstance(text, str) or not text.strip():
            raise LakeError(f"storage {text!r} is no address; give {_SCHEMES}.")
        if "\0" in text:
            raise LakeError("storage holds a NUL byte, which no path may; give it without.")
        given = {_canonical(key): str(value) for key, value in (options or {}).items()}
        if text.lower().startswith("s3://"):
            return cls(_s3_uri(text), _s3_options(given))
        _refuse_unsafe(given | _environment("MOUNT_ALLOW_UNSAFE_RENAME"))
        return cls(_local_path(text), given)

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    def table_uri(self, table: str) -> str:
        """Where a table lies, as delta-rs takes it."""
        return f"{self.uri.rstrip('/')}/{table}"

    @property
    def delta_options(self) -> dict[str, str] | None:
        """What to give delta-rs as storage options: with the credentials, so print it nowhere."""
        return None if self.is_local else {**_DELTA_PATIENCE, **self.options}

    def filesystem(self, *parts: str, attempts: int = _ATTEMPTS) -> fs.FileSystem:
        """Arrow's own file system, rooted at the lake or at a folder in it.

        delta-rs's file system under an Arrow dataset crashes or hangs when the process ends.

        Args:
            parts: names of the folder, below the lake.
            attempts: at a request to an object store, those of the caller not counted.
        """
        path = "/".join([self.uri.removeprefix("s3://").rstrip("/"), *parts])
        return fs.SubTreeFileSystem(path or "/", self._root_filesystem(attempts))

    def _root_filesystem(self, attempts: int) -> fs.FileSystem:
        if self.is_local:
            return fs.LocalFileSystem()
        options = self.options
        endpoint = options.get("AWS_ENDPOINT_URL")
        scheme, _, host = (endpoint or "https://").partition("://")
        # Without a region the SDK asks AWS for the bucket's; other makers' servers take any.
        region = options.get("AWS_REGION") or ("us-east-1" if endpoint else None)
        return fs.S3FileSystem(
            access_key=options.get("AWS_ACCESS_KEY_ID"),
            secret_key=options.get("AWS_SECRET_ACCESS_KEY"),
            session_token=options.get("AWS_SESSION_TOKEN"),
            anonymous=_is_true(options.get("AWS_SKIP_SIGNATURE")),
            region=region,
            scheme=scheme,
            endpoint_override=host.rstrip("/") or None,
            request_timeout=_ANSWER_S,
            connect_timeout=_CONNECT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
            # A small file is then one request instead of the three of an upload in parts.
            allow_delayed_open=True,
        )


def require_writable(storage: Storage) -> None:
    """Make the lake's folder if it is missing, and write to it once.

    Raises:
        LakeStorageError: nothing can be written there; the message says why and what to do.
    """
    name = f".writable-{uuid.uuid4().hex}"
    try:
        if storage.is_local:
            Path(storage.uri).mkdir(parents=True, exist_ok=True)
        root = storage.filesystem(attempts=3)
        with root.open_output_stream(name) as stream:
            stream.write(b"millrace")
        root.delete_file(name)
    except (OSError, pa.ArrowException) as error:
        raise explain(error, storage, "writing") from None


def _canonical(key: str) -> str:
    """delta-rs takes aws_region, region and AWS_REGION alike, and max_retries only so."""
    if key.lower() in _DELTA_PATIENCE or key.startswith("backoff_config."):
        return key.lower()
    key = key.upper()
    if key in ("ENDPOINT", "AWS_ENDPOINT", "ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        return "AWS_ENDPOINT_URL"
    if key in ("DEFAULT_REGION", "AWS_DEFAULT_REGION"):
        return "AWS_REGION"
    if key in ("TOKEN", "AWS_TOKEN"):
        return "AWS_SESSION_TOKEN"
    if key in ("ALLOW_UNSAFE_RENAME", "S3_ALLOW_UNSAFE_RENAME"):
        return "AWS_S3_ALLOW_UNSAFE_RENAME"
    return key if f"AWS_{key}" not in _S3_ENVIRONMENT else f"AWS_{key}"


def _environment(*keys: str) -> dict[str, str]:
    return {key: os.environ[key] for key in keys if os.environ.get(key)}


def _s3_options(given: dict[str, str]) -> dict[str, str]:
    environment: dict[str, str] = {}
    for key, value in _environment(*_S3_ENVIRONMENT).items():
        # AWS's tools take the service's own variable over the general one, and so does this.
        if key == "AWS_ENDPOINT_URL_S3" or _canonical(key) not in environment:
            environment[_canonical(key)] = value
    options = environment | given
    _refuse_unsafe(options)
    endpoint = options.get("AWS_ENDPOINT_URL")
    if endpoint is None:
        return options
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise LakeError(
            "AWS_ENDPOINT_URL is not an address as http://127.0.0.1:9000 or https://host; "
            "credentials go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if parts.scheme == "http" and not _is_true(options.get("AWS_ALLOW_HTTP")):
        raise LakeError(
            f"AWS_ENDPOINT_URL is {parts.scheme}://{parts.netloc}, which is not encrypted; set "
            "AWS_ALLOW_HTTP=true if that is meant, or use https."
        )
    return options


def _refuse_unsafe(options: Mapping[str, str]) -> None:
    for key in ("AWS_S3_ALLOW_UNSAFE_RENAME", "MOUNT_ALLOW_UNSAFE_RENAME"):
        if _is_true(options.get(key)):
            raise LakeError(
                f"{key} is set: with it two writers can overwrite each other's commits, and rows "
                "are lost without an error. Unset it; the default commits with a conditional put, "
                "which S3, MinIO, R2 and others support."
            )


def _is_true(value: str | None) -> bool:
    return value is not None and value.strip().lower() not in _FALSE


def _s3_uri(text: str) -> str:
    rest = text[len("s3://") :]
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise LakeError("storage s3:// names no bucket; give s3://bucket/prefix.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise LakeError(
            "storage s3://… names a bucket with characters that none has; give s3://bucket/prefix, "
            "and credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    parts = [part for part in prefix.split("/") if part]
    odd = [part for part in parts if part in (".", "..") or re.search(r"[?#%\\]", part)]
    if odd:
        raise LakeError(f"storage {text!r} has {odd[0]!r} in its prefix; give one without . ? # %.")
    return "/".join([f"s3://{bucket}", *parts])


def _local_path(text: str) -> str:
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise LakeError(f"storage {text!r} is not on this machine; give {_SCHEMES}.")
        text = unquote(parts.path)
        if "\0" in text:
            raise LakeError("storage holds a NUL byte, which no path may; give it without.")
    elif "://" in text:
        # The rest of an address may hold a password.
        raise LakeError(f"storage {text.partition('://')[0]}:// is not supported; give {_SCHEMES}.")
    path = os.path.abspath(os.path.expanduser(text))
    if path.startswith("//"):
        path = path[1:]
    if re.search("%[0-9A-Fa-f]{2}", path):
        raise LakeError(
            f"storage {path!r} has a % followed by two hex digits, which delta-rs decodes and "
            "then does not find; rename the folder."
        )
    if os.path.isfile(path):
        raise LakeError(f"storage {path!r} is a file; give {_SCHEMES}.")
    return path
