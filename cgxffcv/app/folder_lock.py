"""One run at a time in a log folder: a lock that lasts as long as the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cgxffcv import files
from cgxffcv.errors import UserError

__all__ = ["FolderLock"]

NAME = ".lock"
LONGEST = 200  # bytes that say who holds it


class FolderLock:
    """Held from now until `close`, or until this process ends, however that happens; also a context manager.

    The folder is made if it does not exist. UserError names the process that holds the lock. Where the file system has
    no locks (NFS without its lock service), a note goes to `say`, and nothing keeps two runs apart.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder, self._path = folder, folder / NAME
        self._file = -1
        while self._file < 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise UserError(
                    f"{folder}: cannot write a run's files there: {error.strerror}; name another"
                ) from error
            try:
                self._take(file, say)
            finally:
                if self._file < 0:
                    os.close(file)

    def _take(self, file: int, say: Callable[[str], None]) -> None:
        """Leaves `_file` unset if another run has removed this file meanwhile: then a new one must be locked."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{self.folder}: another run is writing to it: {self._holder(file)}; wait until it ends, or give "
                    "this one a separate folder with --log-dir"
                ) from None
            say(f"note: {self.folder}: no locks there ({error.strerror}); no two runs may write to it at the same time")
        with contextlib.suppress(FileNotFoundError), files.naming(self._path):
            if os.path.samestat(os.fstat(file), os.stat(self._path)):
                os.ftruncate(file, 0)
                os.pwrite(file, _myself().encode(), 0)
                self._file = file

    @staticmethod
    def _holder(file: int) -> str:
        return os.pread(file, LONGEST, 0).decode("utf-8", "replace").strip() or "a process that has just started"

    def close(self) -> None:
        """Releases the folder; a second call does nothing."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # nobody else can have locked it
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
