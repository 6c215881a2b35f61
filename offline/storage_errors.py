"""What the exceptions of a storage mean, in words that say what to do and hold no secret."""

import errno
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from offline.errors import LakeError, LakeStorageError

if TYPE_CHECKING:
    from offline.storage import Storage

_SECRETS: Final = re.compile("SECRET|TOKEN|PASSWORD|ACCESS_KEY|CUSTOMER_KEY|ENCRYPTION_KEY")
_BY_ERRNO: Final[Mapping[int, str]] = {
    errno.ENOSPC: "the disk is full; free some space, or give another --storage",
    errno.EDQUOT: "the disk quota is used up; free some space, or give another --storage",
    errno.EROFS: "the file system is read-only; give a --storage that can be written to",
    errno.EACCES: "permission denied; give this user write access, or another --storage",
    errno.EPERM: "the operation is not permitted; give another --storage",
    errno.ENOTDIR: "a part of the path is a file, not a folder; give another --storage",
    errno.EEXIST: "a file is in the folder's place; move it, or give another --storage",
    errno.ENOENT: "it does not exist, or cannot be made there; check --storage",
    errno.ENAMETOOLONG: "the path is too long; give a shorter --storage",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}

# Words of delta-rs and of the AWS SDK, which give no codes: the first that is found decides.
_S3_WORDS: Final = tuple(
    (re.compile(words, re.IGNORECASE), advice)
    for words, advice in (
        (
            "InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Forbidden|"
            "ExpiredToken|InvalidToken|InvalidClientToken|Unauthorized|InvalidSecurity|"
            r"\b40[13]\b|missing credential|lacks? valid authentication|credentials? provider|"
            "credential.*(invalid|expired|not found|timed? ?out)",
            "the credentials are wrong, expired, or may not do this; check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        ),
        ("NoSuchBucket|bucket does not exist", "the bucket does not exist; create it first"),
        (
            "SlowDown|Service ?Unavailable|TooManyRequests|Internal ?(Server ?)?Error",
            "the store is overloaded or out of order, and was asked several times; try again later",
        ),
        (
            "BadRequest: *HTTP|AllowHttp|URL scheme is not allowed",
            "the endpoint is plain http; set AWS_ALLOW_HTTP=true if that is meant",
        ),
        (
            "Connection refused|dns error|Could ?n.t connect|connect error|timed? ?out|"
            "NetworkConnection|Couldn't resolve|unreachable",
            "the endpoint does not answer; check AWS_ENDPOINT_URL, the region and the network",
        ),
        (
            "response body error|reading a body|end of file before|error sending request|"
            "connection (closed|reset)|broken pipe|incomplete message|error decoding response",
            "the connection to the store broke; check the network, or try again",
        ),
    )
)
_OS_ERROR: Final = re.compile(r"\(?os error (\d+)\)?|\[errno (\d+)\]|code: (\d+),", re.IGNORECASE)
_DAMAGED_LOG: Final = re.compile(
    "Json error|EOF while parsing|contiguous commit|LogSegment|No protocol|No (table )?metadata|"
    "Invalid JSON|missing (commit|version)|Parquet error|Corrupt",
    re.IGNORECASE,
)
_DAMAGED_FILE: Final = re.compile(
    "Parquet (magic|file size)|thrift|corrupt|decompress|page header|Unexpected end of stream",
    re.IGNORECASE,
)
_NOISE: Final = re.compile(r"\x1b\[[0-9;]*m|^\s*\d+: [<\w].*$|^\s+at .*$", re.MULTILINE)


def explain(error: BaseException, storage: "Storage", doing: str) -> LakeError:
    """What an exception of the storage or of delta-rs means, in words and without secrets.

    Use as `raise explain(error, storage, "committing to steps") from None`: the original's text
    may hold credentials.

    Args:
        error: an OSError, or an exception of deltalake or of Arrow.
        storage: whose credentials must not be in the message.
        doing: what was being done, as "opening steps".
    """
    if isinstance(error, LakeError):
        return error
    what = f"{doing} at {storage.uri} failed"
    words = _clean(str(error), storage)
    advice = _advice(error, words, storage)
    if advice is not None:
        return LakeStorageError(f"{what}: {advice}. ({_shortened(words, 200)})")
    is_arrow = isinstance(error, OSError | pa.ArrowException)
    damaged = _DAMAGED_FILE if is_arrow else _DAMAGED_LOG
    if damaged.search(words):
        part = "a data file" if is_arrow else "the commit log"
        return LakeError(
            f"{what}: {part} is damaged ({_shortened(words, 200)}). `millrace lake doctor` shows "
            "what is left; copy the folder before repairing anything."
        )
    kind = LakeStorageError if isinstance(error, OSError) else LakeError
    return kind(f"{what}: {type(error).__name__}: {_shortened(words, 500)}")


def is_refusal(error: BaseException) -> bool:
    """Whether a store says no, as to wrong credentials: asking again changes nothing."""
    return _S3_WORDS[0][0].search(str(error)) is not None


def _advice(error: BaseException, words: str, storage: "Storage") -> str | None:
    if not storage.is_local:
        # The same code is NoSuchBucket to one of the two clients and NO_SUCH_BUCKET to the other.
        both = f"{words}\n{words.replace('_', '')}"
        known = (advice for pattern, advice in _S3_WORDS if pattern.search(both))
        return next(known, None)
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno)
    # delta-rs is written in Rust, whose words for an errno carry its number.
    found = _OS_ERROR.search(words)
    number = next(group for group in found.groups() if group) if found else "0"
    return _BY_ERRNO.get(int(number))


def _clean(text: str, storage: "Storage") -> str:
    """One line without colours, stack frames and credentials."""
    for key, value in storage.options.items():
        if _SECRETS.search(key) and len(value) > 3:
            text = text.replace(value, "***")
    text = re.sub("(?i)<(AWSAccessKeyId|[A-Za-z]*Token[A-Za-z]*)>[^<]*<", r"<\1>***<", text)
    return " ".join(_NOISE.sub("", text).split())


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + " ..."
