"""Faults that are injected into what writes files: a disk that fails, and one that loses power."""

import builtins
import io
import os
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from patlib import RunConfig

#: the long form of the tests that inject faults, `make chaos`
CHAOS = os.environ.get("PATLIB_CHAOS") == "1"


def tiny_config(camvid_tree, output_dir, **fields):
    settings = dict(
        dataset="camvid",
        data_root=str(camvid_tree),
        image_size=(32, 40),
        model_params={"width": 1, "stages": 1},
        epochs=2,
        batch_size=2,
        device="cpu",
        output_dir=str(output_dir),
    )
    return RunConfig(**{**settings, **fields})


class WatchedFile:
    """A file that is written to, of which every write is announced first."""

    def __init__(self, file, announce):
        self.file, self.announce = file, announce

    def write(self, data):
        self.announce("write", self.file.fileno())
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@contextmanager
def watched(folder, announce):
    """Announce every write, fsync and rename of files under a folder before it is done.

    Args:
        announce: called with "write", "fsync" or "rename", and the path.
    """

    def of_path(operation, path):
        path = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else Path(path)
        if folder == path or folder in path.parents:
            announce(operation, path)

    def opening(original):
        def opened(file, mode="r", *args, **options):
            result = original(file, mode, *args, **options)
            written = "r" not in mode and not isinstance(result, WatchedFile)
            return WatchedFile(result, of_path) if written else result

        return opened

    def announced(operation, original):
        def call(path, *args, **options):
            of_path(operation, path)
            return original(path, *args, **options)

        return call

    with ExitStack() as stack:
        for module, name in ((builtins, "open"), (io, "open"), (os, "fdopen")):
            original = getattr(module, name)
            stack.enter_context(mock.patch.object(module, name, opening(original)))
        for name, operation in (("fsync", "fsync"), ("replace", "rename"), ("rename", "rename")):
            original = getattr(os, name)
            stack.enter_context(mock.patch.object(os, name, announced(operation, original)))
        yield


@contextmanager
def failing_disk(folder, n, error):
    """The n-th write, fsync or rename under a folder fails with an error number.

    Yields the operations up to then.
    """
    done = []

    def fail(operation, path):
        done.append((operation, path))
        if len(done) == n:
            raise OSError(error, os.strerror(error))

    with watched(folder, fail):
        yield done


class PowerLoss:
    """What a power loss would leave of a folder, before each write, fsync and rename in it.

    A file has the content that it had at its last fsync, none without one; a folder the names that
    it had at its last fsync.
    """

    def __init__(self, folder):
        self.folder = folder
        self.held = []  # open files: the number of an inode is not used again
        self.content, self.names = {}, {}
        self.states = []

    def number(self, path):
        handle = os.open(path, os.O_RDONLY)
        self.held.append(handle)
        return os.fstat(handle).st_ino

    def before(self, operation, path):
        self.states.append((dict(self.content), dict(self.names)))
        if operation == "fsync":
            number = self.number(path)
            if path.is_dir():
                self.names[number] = {p.name: (self.number(p), p.is_dir()) for p in path.iterdir()}
            else:
                # What the buffer of the file still holds is written by the flush before the fsync.
                self.content[number] = path.read_bytes()

    @contextmanager
    def watch(self):
        self.root = self.number(self.folder)
        try:
            with watched(self.folder, self.before):
                yield self
        finally:
            for handle in self.held:
                os.close(handle)

    def restore(self, state, target):
        """Make the folder that is there after a power loss in one of the states."""
        content, names = self.states[state]

        def make(number, folder):
            folder.mkdir()
            for name, (inner, is_folder) in names.get(number, {}).items():
                if is_folder:
                    make(inner, folder / name)
                else:
                    (folder / name).write_bytes(content.get(inner, b""))

        make(self.root, target)


@contextmanager
def other_device(folder):
    """The folder of temporary files is on another device: nothing can be renamed out of it."""

    def one_device(original):
        def call(source, target, *args, **options):
            inside = [folder in Path(path).absolute().parents for path in (source, target)]
            if inside[0] != inside[1]:
                raise OSError(18, "Invalid cross-device link")
            return original(source, target, *args, **options)

        return call

    with ExitStack() as stack:
        for name in ("replace", "rename", "link"):
            original = getattr(os, name)
            stack.enter_context(mock.patch.object(os, name, one_device(original)))
        stack.enter_context(mock.patch.object(tempfile, "tempdir", str(folder)))
        yield


def temporary_files(folder):
    """Hidden files and folders that are no locks."""
    return [p for p in folder.rglob(".*") if p.name != ".lock"]
