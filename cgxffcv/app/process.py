"""What all our commands share: which rank this is, how many cores it has, and how it ends.

A user's mistake ends in one message and exit code 2, a failure of the environment in one message and exit code 1; only
a bug of ours shows a traceback. Under mpirun the first rank that fails ends all others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn, TextIO

from cgxffcv import interrupts, process_info
from cgxffcv.errors import ConfigError, UsageError, UserError
from cgxffcv.interrupts import Terminated

Say = Callable[[str], None]
# How long other ranks wait for rank 0 to print what all would print, and for the rank of whose failure they were
# notified.
SAME_WORD_SECONDS, HEARD_SECONDS = 1.0, 1.5


def rank() -> int:
    """This process's number according to the launcher; 0 without a launcher. Does not start MPI."""
    return process_info.or_alone().rank


def ranks() -> int:
    """The number of processes according to the launcher; 1 without a launcher."""
    return max(process_info.or_alone().size, 1)


def local_ranks() -> int:
    """The number of processes on this machine."""
    return max(process_info.or_alone().local_size, 1)


def local_rank() -> int:
    """This process's number among those on this machine."""
    return process_info.or_alone().local_rank


def cores_of_this_rank() -> int:
    """Cores that this process may count as its own: those it is bound to, or its share of those of all ranks here."""
    usable = len(os.sched_getaffinity(0))
    bound = usable < (os.cpu_count() or 1)
    if bound and ranks() > 1:
        return usable
    return max(usable // local_ranks(), 1)


def printable(stream: TextIO | None) -> None:
    """Makes a stream show what its encoding lacks (an umlaut in ASCII, a byte of a file's name) as an escape."""
    if getattr(stream, "errors", "") in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Prints on rank 0."""
    if rank() == 0:
        say_here(text)


def say_here(text: str = "") -> None:
    """Prints on whichever rank this is: for work that only one of them does."""
    printable(sys.stdout)
    print(text, flush=True)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        return f"{names}: {error.strerror}" if names else error.strerror
    text = str(error) or ("there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    # the text says what to install; doctor finds out how this installation is built again
    return f"{text} (cgxffcv doctor gives the command)" if type(error).__name__ == "NotBuiltError" else text


def _expected() -> tuple[type[BaseException], ...]:
    """Exceptions whose message is enough, without a traceback."""
    kinds: list[type[BaseException]] = [OSError, MemoryError]
    core = sys.modules.get("_cgxffcv")
    for name in ("BetonError", "CommError", "CudaError", "NotBuiltError"):
        if core is not None:
            kinds.append(getattr(core, name))
    return tuple(kinds)


_how_to_go_on = ""


def go_on_with(text: str) -> None:
    """Sets what to print after the message of a failure between ranks; "" for nothing."""
    global _how_to_go_on
    _how_to_go_on = text


def _flush() -> None:
    """Flushes what was printed; a stream may be closed, full, or gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def end(code: int) -> NoReturn:
    """Ends this process now: no exit handler of a library may wait for ranks that are gone."""
    _flush()
    os._exit(code)


def run(prog: str, main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and ends the process with its result, or with a message and a code for what went wrong."""
    interrupts.begin(prog)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # show what is warned about, not our line of code
    warnings.formatwarning = lambda message, *where: f"{prog}: warning: {message}\n"
    printable(sys.stdout)
    try:
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException as error:
        interrupts.quiet()  # mpirun may now end this process without another message
        code, delay, text = _verdict(prog, error)
        _tell_other_ranks(error)
        time.sleep(delay)
        if text and sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
        end(code)
    if code != 0:
        end(code)
    interrupts.at_once()
    sys.exit(0)


def _verdict(prog: str, error: BaseException) -> tuple[int, float, str]:
    """Exit code, seconds to wait, and what to say then.

    The first rank to end ends all others, so the rank that knows most reports first: rank 0 if all ranks would say the
    same; ranks that were only notified of another one's failure come last.
    """
    alone = ranks() == 1
    name = prog if alone else f"{prog}: rank {rank()}"
    if isinstance(error, KeyboardInterrupt):
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        return 128 + number, 0.0, interrupts.words(prog, number)
    if isinstance(error, UserError):
        lines = [str(error)]
        if isinstance(error, ConfigError):
            lines = [*error.problems[:-1], f"{error.problems[-1]}; see {prog} --help"]
        text = "".join(f"{prog if rank() == 0 else name}: error: {line}\n" for line in lines)
        code = 2 if isinstance(error, ConfigError | UsageError) else 1
        return code, SAME_WORD_SECONDS if rank() else 0.0, text
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        error = OSError(errno.EAGAIN, "no more threads may be started: raise the limit (ulimit -u, or a container's)")
    if isinstance(error, _expected()):
        heard_of_it = not alone and type(error).__name__ == "CommError"
        more = f"{prog}: {_how_to_go_on}\n" if _how_to_go_on else ""
        return 1, HEARD_SECONDS if heard_of_it else 0.0, f"{name}: error: {_message(error)}\n{more}"
    if interrupts.received():  # whoever caught the interrupt's exception raised another one instead
        return 128 + interrupts.received(), 0.0, interrupts.words(prog, interrupts.received())
    if isinstance(error, ImportError) and error.name == "_cgxffcv":
        remedy = "python -m cgxffcv doctor says what fixes it (in a checkout: make build)"
        text = f"{name}: error: the extension module cannot be loaded: {error}; {remedy}\n"
        return 1, SAME_WORD_SECONDS if rank() else 0.0, text
    text = "".join(traceback.format_exception(error))
    return 70, 0.0, f"{text}{name}: this is a bug in cgxffcv; please report it with the lines above\n"


def _tell_other_ranks(error: BaseException) -> None:
    """Aborts the communicators that are left, so that no rank waits for this one."""
    module = sys.modules.get("cgxffcv.comm")
    if module is not None and ranks() > 1:
        module.abort_all(f"{type(error).__name__}: {error}")
