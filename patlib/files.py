"""Files that appear whole or not at all, stay after a power loss, and show a changed bit."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# A ZIP file ends in its comment, before which two bytes say how long that is.
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64


@contextmanager
def write_whole(path: str | Path, keep: str | Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears whole or not at all: written beside first, then renamed.

    It is on the disk before it gets its name, and the name before this returns, so that a power
    loss leaves the old file or the new one.

    Args:
        path: of the file.
        keep: the name that the file of before gets; None to write over it.

    Raises:
        OSError: it cannot be written, such as on a full disk; the message has the path.
    """
    path = Path(path)
    make_folder(path.parent)
    beside = None
    try:
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(beside, 0o644)
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(beside, path)
        sync_folder(path.parent)
    except BaseException as error:
        if beside is not None:
            Path(beside).unlink(missing_ok=True)
        # The reader knows the file by its name, not by that of the one beside.
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Write a whole file or nothing (see :func:`write_whole`)."""
    with write_whole(path) as file:
        file.write(text.encode())
    return Path(path)


def remove_unfinished(path: str | Path) -> None:
    """Remove what killed processes left beside ``path`` (see :func:`write_whole`).

    Only for a caller that no other process writes ``path`` beside.
    """
    path = Path(path)
    for beside in path.parent.glob(f".{path.name}-*"):
        beside.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those that hold it, if it is missing; their names are on the disk then."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can be asked to."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal_zip(data: bytes) -> bytes:
    """A ZIP file without a comment, with the SHA-256 of all of it as its comment."""
    if data[-22:-18] != b"PK\x05\x06" or data[-2:] != b"\0\0":
        raise ValueError("data must be a ZIP file without a comment")
    sealed = data[:-2] + _SEAL_LENGTH.to_bytes(2, "little") + _SEAL
    return sealed + hashlib.sha256(sealed).hexdigest().encode()


def check_seal(data: bytes) -> bool:
    """Whether a file ends in a seal (see :func:`seal_zip`).

    Raises:
        ValueError: it has one, of other content.
    """
    seal = data[-_SEAL_LENGTH:]
    if not seal.startswith(_SEAL):
        return False
    if hashlib.sha256(memoryview(data)[:-64]).hexdigest().encode() != seal[len(_SEAL) :]:
        raise ValueError("its content does not have the SHA-256 that it ends in")
    return True
