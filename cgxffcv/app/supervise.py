"""Runs mpirun and mediates between it and the terminal, so that the last thing shown is the job's own messages.

Ctrl-C at a terminal reaches a whole process group, mpirun included, and Open MPI 5 then ends the ranks without letting
them say anything. So mpirun gets a separate session; Ctrl-C (or SIGTERM) goes to rank 0 first, which says how to
resume, and whose end ends the job. mpirun's report that a rank has ended with an error is left out: the rank has said
why. An error that all ranks would report is shown once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cgxffcv.interrupts import Terminated

GRACE_SECONDS = 10.0  # for the ranks to end after Ctrl-C, then for mpirun
LOOK_SECONDS = 0.02
PR_SET_PDEATHSIG = 1
RULE = re.compile(rb"-{60,}\s*\n")
KNOWN = re.compile(rb"Primary job +terminated normally|\w+ detected that one or more processes exited with non-zero")
ERROR = re.compile(rb"(.*?: )(?:rank \d+: )?(error: .*)\n")
ASKED_FOR = re.compile(rb"\w+ noticed that process rank")


class Banners:
    """Passes on what mpirun writes to stderr, except boxes (between two rules) that say what is already known, and
    errors that another rank has already reported."""

    def __init__(self, out: int) -> None:
        self.out = out
        self.asked = False  # True once the user has asked for the ranks to end
        self.pending = b""  # part of a line that may open a box, or of one in a box that is left out
        self.within, self.dropping, self.at_start = False, False, True
        self.errors: set[tuple[bytes, ...]] = set()

    def _line(self, line: bytes) -> bytes:
        """What remains of a whole line; a rule is held back until the line after it shows which box this is."""
        if self.dropping:
            self.dropping = RULE.fullmatch(line) is None
            return b""
        if self.within:
            if not line.strip():  # Open MPI 6 leaves a line empty
                return b""
            self.within = False
            self.dropping = bool(KNOWN.match(line) or (self.asked and ASKED_FOR.match(line)))
            return b"" if self.dropping else b"-" * 74 + b"\n" + line
        self.within = RULE.fullmatch(line) is not None
        error = ERROR.fullmatch(line)
        if self.within or (error and error.groups() in self.errors):
            return b""
        if error:
            self.errors.add(error.groups())
        return line

    def feed(self, data: bytes) -> None:
        *lines, rest = (self.pending + data).split(b"\n")
        text = b""
        for line in lines:
            text += self._line(line + b"\n") if self.at_start else line + b"\n"
            self.at_start = True
        held = self.within or self.dropping or (self.at_start and rest.startswith(b"-"))
        self.pending = rest if held else b""
        if rest and not held:
            text, self.at_start = text + rest, False
        self._write(text)

    def end(self) -> None:
        self._write((b"-" * 74 + b"\n" if self.within else b"") + (b"" if self.dropping else self.pending))

    def _write(self, text: bytes) -> None:
        while text:
            text = text[os.write(self.out, text) :]

    def copy(self, pipe: int) -> None:
        """Passes on everything up to the pipe's end; runs in a thread."""
        while data := os.read(pipe, 1 << 16):
            self.feed(data)
        self.end()


def _ranks(mpirun: int) -> dict[int, int]:
    """The process of each rank that mpirun has started on this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != mpirun:
                continue
            rank = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", (folder / "environ").read_bytes())
        except OSError:
            continue  # it has ended
        if rank:
            found[int(rank.group(1))] = int(folder.name)
    return found


def _send(process: int, number: int) -> None:
    """Sends a signal as a terminal would: to everything that a rank has started, if it leads a process group."""
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process) == process:
            os.killpg(process, number)
        else:
            os.kill(process, number)


class Ending:
    """Ends a job on request (by signal `number`): rank 0 first, then the others, then mpirun."""

    def __init__(self, mpirun: subprocess.Popen[bytes], number: int) -> None:
        self.mpirun, self.number = mpirun, number
        self.deadline = time.monotonic() + GRACE_SECONDS
        self.hard = signal.SIGTERM
        ranks = _ranks(mpirun.pid)
        self.rank_0 = 0 in ranks
        if self.rank_0:
            _send(ranks[0], number)
        else:
            mpirun.send_signal(number)

    def look(self) -> None:
        """To be called repeatedly. The others are ended at once after rank 0, so that they do not report its end."""
        ranks = _ranks(self.mpirun.pid) if self.rank_0 else {}
        if self.rank_0 and 0 not in ranks:
            self.rank_0 = False
            for process in ranks.values():
                _send(process, signal.SIGTERM)
        if time.monotonic() > self.deadline:
            self.hurry()

    def hurry(self) -> None:
        self.mpirun.send_signal(self.hard)
        self.hard, self.deadline = signal.SIGKILL, time.monotonic() + GRACE_SECONDS


def _wait(mpirun: subprocess.Popen[bytes], banners: Banners, signals: set[signal.Signals]) -> int | None:
    """Waits until mpirun has ended; returns the first signal that asked for it. A second one, or GRACE_SECONDS, ends
    all ranks at once."""
    ending = None
    while mpirun.poll() is None:
        got = signal.sigtimedwait(signals, LOOK_SECONDS if ending else 3600)
        if got is not None and got.si_signo != signal.SIGCHLD:
            if ending is not None:
                ending.hurry()
            else:
                banners.asked = True
                ending = Ending(mpirun, got.si_signo)
        elif ending is not None:
            ending.look()
    return ending.number if ending else None


def run(line: Sequence[str]) -> int:
    """Returns mpirun's exit code (128 + n if signal n ended it); raises KeyboardInterrupt or Terminated if the user
    ended it."""
    libc = ctypes.CDLL(None)
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signals = {number for number in signals if signal.getsignal(number) != signal.SIG_IGN} | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # mpirun, and with it the ranks, does not outlive this process

    try:
        process = subprocess.Popen(line, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=in_child)
        assert process.stderr is not None
        sys.stderr.flush()
        banners = Banners(2)
        copying = threading.Thread(target=banners.copy, args=(process.stderr.fileno(),), daemon=True)
        copying.start()
        asked = _wait(process, banners, signals)
        copying.join(GRACE_SECONDS)  # a process that a rank has left behind may hold the pipe
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if asked is not None:
        raise KeyboardInterrupt if asked == signal.SIGINT else Terminated
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
