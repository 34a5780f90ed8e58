"""Ctrl-C and SIGTERM, wherever they come while a command starts and runs: one line and an exit code, no traceback."""

import signal
import textwrap

import pytest
from checkout import ROOT, run_python

# Python runs it before any of our code: the signal comes when the module CGXFFCV_TEST_AT is about to be imported.
HOOK = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("CGXFFCV_TEST_AT"):
            os.kill(os.getpid(), int(os.environ["CGXFFCV_TEST_SIGNAL"]))
sys.meta_path.insert(0, Finder())
"""
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}


@pytest.mark.parametrize("number", list(ENDS))
@pytest.mark.parametrize(
    "name, words, modules",
    [
        (
            "write_datasets.py",
            [str(ROOT / "write_datasets.py"), "--data.source=sample"],
            ["cgxffcv.app.process", "argparse", "numpy", "yaml", "cgxffcv.recipes", "_cgxffcv"],
        ),
        (
            "train_cifar_ffcv_cgx.py",
            [str(ROOT / "train_cifar_ffcv_cgx.py")],
            ["cgxffcv.app.commands", "cgxffcv.app.config"],
        ),
        ("cgxffcv", ["-m", "cgxffcv", "doctor"], ["cgxffcv.app.cli", "importlib.metadata", "_cgxffcv"]),
        ("cgxffcv", ["-m", "cgxffcv", "info", "x"], ["cgxffcv.beton", "numpy"]),
        ("cgxffcv", ["-m", "cgxffcv", "bench", "loader"], ["cgxffcv.bench", "concurrent.futures", "_cgxffcv"]),
        ("cgxffcv", ["-m", "cgxffcv", "launch", "-np", "2", "train"], ["cgxffcv.app.launch"]),
        ("cgxffcv train", ["-m", "cgxffcv", "train"], ["cgxffcv.app.session"]),
    ],
)
def test_at_the_start(tmp_path, number, name, words, modules):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    for module in modules:
        code, text = ENDS[number]
        hook = {"CGXFFCV_TEST_AT": module, "CGXFFCV_TEST_SIGNAL": int(number)}
        done = run_python(*words, status=code, cwd=tmp_path, folders=[tmp_path], **hook)
        assert done.stderr == f"{name}: {text}\n", (module, done.stdout, done.stderr)


def ended(folder, body, before="", **variables):
    """(exit code, output, errors) of a program whose main() has that body."""
    program = "import os, pathlib, signal\nfrom cgxffcv import interrupts\nfrom cgxffcv.app import process\n"
    program += f"{before}\ndef main():\n{textwrap.indent(body, '    ')}\nprocess.run('prog', main)"
    done = run_python("-c", program, status=None, cwd=folder, **variables)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("careful", [False, True])
def test_whoever_catches_it_cannot_make_something_else_of_it(tmp_path, careful):
    body = "interrupts.careful()\n" * careful + "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
    body += "except BaseException:\n    raise ImportError('numpy.core.multiarray failed to import')"
    assert ended(tmp_path, body) == (130, "", "prog: interrupted\n")


def test_with_something_to_put_away_it_is_put_away(tmp_path):
    body = "interrupts.careful()\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    body += "finally:\n    pathlib.Path('away').touch()"
    assert ended(tmp_path, body) == (143, "", "prog: terminated\n") and (tmp_path / "away").exists()


def test_a_second_one_while_it_ends_changes_nothing(tmp_path):
    before = "process._tell_other_ranks = lambda error: os.kill(os.getpid(), signal.SIGINT)"
    body = "interrupts.careful()\nos.kill(os.getpid(), signal.SIGINT)"
    assert ended(tmp_path, body, before) == (130, "", "prog: interrupted\n")


def test_what_was_printed_before_is_seen(tmp_path):
    body = "print('so far', end='')\nos.kill(os.getpid(), signal.SIGINT)"
    assert ended(tmp_path, body) == (130, "so far", "prog: interrupted\n")


def test_an_ignored_signal_stays_ignored(tmp_path):
    program = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nfrom cgxffcv.app import process\n"
    program += "def main():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('went on')\nprocess.run('prog', main)"
    done = run_python("-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("went on\n", "")


def test_ranks_leave_the_word_to_mpirun(tmp_path):
    assert ended(tmp_path, "os.kill(os.getpid(), signal.SIGTERM)", OMPI_COMM_WORLD_SIZE=2) == (143, "", "")
