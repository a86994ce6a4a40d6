"""An archive in an object store that speaks S3: one object an object, below a prefix.

Small objects are made by a put that fails where there is one of that name (``If-None-Match: *``): of two writers one
wins. Members are too large for one put, and a multipart upload knows no such condition (it is ignored by Ceph's
gateway, and by others); they have names that nobody else chooses, and count only when a catalogue names them.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from lvmsync.errors import DeviceError, LvmsyncError, TransportError, UsageError
from lvmsync.interfaces import Blob, NewBlob
from lvmsync.places import BucketPlace
from lvmsync.stores.ahead import Ahead, AheadBlob
from lvmsync.stores.threads import Threads
from lvmsync.stream.frames import Buffer

_T = TypeVar("_T")
_TIMEOUT = 180.0  # seconds that one request may take, whole; parts of 8 MiB, four at once, at 1.5 Mbit/s
_CONNECT_TIMEOUT = 15.0
_FAREWELL = 5.0  # seconds for tidying up after a failure
_RETRIES = 4  # with pauses in between that become longer; only what may be asked twice is
_RETRY_TIMEOUT = 60.0  # seconds after which nothing is tried again
_PART, _AT_ONCE = 8 << 20, 4
_MOST_PARTS = 10000  # of an upload, as S3 has it
_MARGIN = 1.02  # what a stream may be larger than the data in it
_WRITE = 1 << 20  # bytes that are handed over at a time

_STATUS = re.compile(r"status code: (\d{3}) ?([^:<\n]*)")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")


class BucketStore:
    """The objects below a prefix of a bucket.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, place: BucketPlace, ahead: Ahead) -> None:
        self.name = str(place)
        self._ahead = ahead
        limit = _read_timeout()
        try:
            self._store = S3Store(
                place.bucket,
                prefix=place.prefix or None,
                client_options={
                    # obstore reads these by itself only where no option of its kind is given
                    "allow_http": _is_set("AWS_ALLOW_HTTP"),
                    "allow_invalid_certificates": _is_set("AWS_ALLOW_INVALID_CERTIFICATES"),
                    "timeout": timedelta(seconds=limit),
                    "connect_timeout": timedelta(seconds=min(limit, _CONNECT_TIMEOUT)),
                },
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": timedelta(seconds=min(2 * limit, _RETRY_TIMEOUT)),
                },
            )
        except BaseError as error:
            raise UsageError(f"{self.name}: {_first_line(error)}") from error

    def make(self) -> None:
        """Find out whether an archive can be there: the bucket has to exist, and to know create-only puts.

        Raises:
            DeviceError: the store does not give what an archive needs.
        """
        probe = f"probe-{uuid.uuid4().hex}"
        try:
            self._put(probe, b"1")
            try:
                self._put(probe, b"2")
            except AlreadyExistsError:
                return
            raise DeviceError(
                f"{self.name}: this store overwrites an object that was to be made only if there is none"
                " (If-None-Match): two writers would lose each other's points, so it cannot hold an archive",
                device=self.name,
            )
        except (BaseError, OSError) as error:
            self._fail(error, "make an object")
        finally:
            self._forget(probe)

    def list_objects(self) -> dict[str, int]:
        """Return the names of all objects, with their bytes; see `interfaces.Store`."""
        try:
            found = self._call(lambda: obstore.list_with_delimiter(self._store)["objects"])
        except (BaseError, OSError) as error:
            self._fail(error, "list its objects")
        names = [(one["path"].rpartition("/")[2], one["size"]) for one in found]
        return {name: size for name, size in names if name and not name.startswith("probe-")}

    @contextmanager
    def open(self, name: str) -> Iterator[Blob]:
        """Open an object for reading.

        Raises:
            DeviceError: it is not there, or cannot be opened.
        """
        try:
            size = self._call(lambda: obstore.head(self._store, name)["size"])
        except FileNotFoundError as error:
            raise DeviceError(
                f"{self.name}/{name} is not there: was it removed by hand, or pruned just now? 'lvmsync archive verify'"
                " tells",
                device=f"{self.name}/{name}",
            ) from error
        except BaseError as error:
            self._fail(error, f"open {name}")

        def fetch(start: int, end: int) -> Buffer:
            try:
                return memoryview(self._call(lambda: obstore.get_range(self._store, name, start=start, end=end)))
            except (BaseError, OSError) as error:
                self._fail(error, f"read {name}")

        with AheadBlob(f"{self.name}/{name}", size, fetch, self._ahead) as blob:
            yield blob

    def read(self, name: str) -> bytes | None:
        """Return a small object whole; None if it is not there."""
        try:
            return self._call(lambda: bytes(obstore.get(self._store, name).bytes()))
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                return None
            self._fail(error, f"read {name}")

    @contextmanager
    def create(self, name: str, most: int | None = None) -> Iterator[NewBlob]:
        """Yield what an object is written to; see `interfaces.Store`. What fails leaves no object."""
        part = max(_PART, -(-int((most or 0) * _MARGIN) // _MOST_PARTS))
        at_once = max(1, min(_AT_ONCE, _AT_ONCE * _PART // part))
        file = obstore.open_writer(self._store, name, buffer_size=part, max_concurrency=at_once)
        blob = _Upload(self.name, name, file, part, self._ahead.threads)
        try:
            yield blob
            blob.flush()
        except BaseException:
            found = sys.exc_info()
            with suppress(BaseError, OSError):  # a TimeoutError is an OSError
                self._call(lambda: file.__exit__(*found), _FAREWELL)  # ends the upload without an object
            raise
        blob.close()

    def put_new(self, name: str, data: bytes) -> bool:
        """Write a small object; False if there is one of that name already: one writer wins."""
        try:
            self._put(name, data)
        except AlreadyExistsError:
            # An answer that was lost on its way is asked for again, and then there is one already: ours.
            return self.read(name) == data
        except (BaseError, OSError) as error:
            self._fail(error, f"write {name}")
        return True

    def delete(self, *names: str) -> None:
        """Remove objects, in this order; they may be gone already."""
        for name in names:
            try:
                self._call(partial(obstore.delete, self._store, name))
            except FileNotFoundError:
                pass
            except (BaseError, OSError) as error:
                self._fail(error, f"remove {name}")

    def room(self) -> int | None:
        """Return None: an object store does not tell."""
        return None

    def list_unfinished(self) -> list[str]:
        """Return nothing: parts of an upload that was cut off are no objects; a rule of the bucket removes them."""
        return []

    def _put(self, name: str, data: bytes) -> None:
        self._call(lambda: obstore.put(self._store, name, data, mode="create", use_multipart=False))

    def _call(self, work: Callable[[], _T], patience: float | None = None) -> _T:
        # obstore looks for no signals: who waits for it in the main thread cannot be interrupted.
        return self._ahead.threads.run(work, patience)

    def _forget(self, name: str) -> None:
        with suppress(BaseError, OSError):  # one that is left is listed by nobody
            self._call(lambda: obstore.delete(self._store, name), _FAREWELL)

    def _fail(self, error: Exception, what: str) -> NoReturn:
        raise _explain(error, self.name, what) from error


class _Upload:
    """An object that is being written (an `interfaces.NewBlob`)."""

    def __init__(self, store: str, name: str, file: Any, part: int, threads: Threads) -> None:
        self.stored = 0
        self._store = store
        self._name = name
        self._file = file
        self._threads = threads
        self._most = part * _MOST_PARTS
        self._pieces: list[bytes] = []
        self._waiting = 0

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append every byte of ``buffers``."""
        for buffer in buffers:
            piece = bytes(buffer)  # obstore keeps what it is given, and the caller reuses it
            self._pieces.append(piece)
            self._waiting += len(piece)
            self.stored += len(piece)
        if self.stored > self._most:
            raise DeviceError(
                f"{self._store}/{self._name}: an upload has {_MOST_PARTS} parts at the most, and this stream has more"
                f" than {self._most} bytes: its length was not known beforehand; import it from a file",
                device=self._store,
            )
        if self._waiting >= _WRITE:
            self.flush()

    def close(self) -> None:
        """Wait until the object is there, whole."""
        try:
            self._threads.run(self._file.close)
        except (BaseError, OSError) as error:
            raise _explain(error, self._store, f"write {self._name}") from error

    def flush(self) -> None:
        """Hand over what is left."""
        if not self._pieces:
            return
        data = b"".join(self._pieces)
        try:
            self._threads.run(lambda: self._file.write(data))
        except (BaseError, OSError) as error:
            raise _explain(error, self._store, f"write {self._name}") from error
        self._pieces, self._waiting = [], 0


def _read_timeout() -> float:
    """Return the seconds that one request may take.

    Raises:
        UsageError: the environment says something that is no such number.
    """
    word = os.environ.get("LVMSYNC_S3_TIMEOUT")
    if word is None:
        return _TIMEOUT
    if not (word.isascii() and word.isdecimal() and 0 < int(word) <= 86400):
        raise UsageError(f"LVMSYNC_S3_TIMEOUT={word}: seconds that one request may take, from 1 to 86400")
    return float(word)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on")


def _explain(error: Exception, name: str, what: str) -> LvmsyncError:
    """Say in one line what went wrong, and what to do."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is None:
        if "builder error" in text and not _is_set("AWS_ALLOW_HTTP"):
            return UsageError(
                f"{name}: AWS_ENDPOINT_URL is no https:// address; where http:// is meant, set AWS_ALLOW_HTTP=true"
            )
        if "error sending request" in text or "HTTP error" in text or "timed out" in text:
            return TransportError(
                f"{name}: cannot {what}: no answer from the store ({_first_line(error)}): is AWS_ENDPOINT_URL right,"
                " and is it up? Then run it again"
            )
        return DeviceError(f"{name}: cannot {what}: {_first_line(error)}", device=name)
    number = int(status[1])
    answer = f"the store answers {status[1]}{f' ({code[1]})' if code else f' {status[2].strip()}'.rstrip()}"
    if code and code[1] == "NoSuchBucket":
        way = "there is no such bucket: make it with the tools of the store"
    elif code and code[1] == "RequestTimeTooSkewed":
        way = "the clock of this machine, or of the store, is wrong: set it"
    elif number in (401, 403):
        way = "look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and at what this key may do there"
    elif number in (301, 307, 400):
        way = "are AWS_REGION and AWS_ENDPOINT_URL those of the bucket?"
    elif number >= 500 or number in (408, 429):
        return TransportError(f"{name}: cannot {what}: {answer}, again and again: run it again later")
    else:
        way = "run it again, or ask who runs the store"
    return DeviceError(f"{name}: cannot {what}: {answer}: {way}", device=name)


def _first_line(error: Exception) -> str:
    """Return what an error of obstore says, without where in its source it came about."""
    text = str(error).split("\n\nDebug source", 1)[0].split("<?xml", 1)[0]
    return " ".join(text.split())[:300] or type(error).__name__
