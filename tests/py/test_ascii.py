"""Terminals and logs that take only ASCII, folder names with an umlaut or with bytes that are not text, closed
streams."""

import os
import subprocess
import sys

import pytest
from checkout import environ, run_command

ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
RUN = ("-m", "cgxffcv")
NAMES = {"umlaut": "l\u00e4ufe".encode(), "bytes": b"l\xe4ufe"}


def command(*words, variables=ASCII, **options):
    env = environ(**variables)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, *words], timeout=120, check=False, env=env, **options)


@pytest.mark.parametrize("variables", [ASCII, {**ASCII, "PYTHONIOENCODING": "utf-8"}], ids=["ascii", "utf-8"])
@pytest.mark.parametrize("name", NAMES)
def test_folders_with_any_name(tmp_path, name, variables):
    folder = os.fsencode(tmp_path) + b"/" + NAMES[name]
    os.mkdir(folder)
    for words, code in (
        ([*RUN, "write", "--dataset-dir", folder, "--data.source=sample"], 0),
        ([*RUN, "info", folder + b"/cifar_test.beton"], 0),
        ([*RUN, "verify", folder + b"/cifar_test.beton"], 0),
        ([*RUN, "info", folder + b"/none.beton"], 1),
        ([*RUN, "doctor"], 0),
        ([*RUN, "launch", "-np", "1", "--print", folder + b"/x.py"], 0),
        ([*RUN, "train", "--config-file", folder + b"/none.yaml"], 2),
        ([*RUN, "train", b"--" + NAMES[name]], 2),
        ([*RUN, "train", "--dataset-dir", folder + b"/none"], 1),
        ([*RUN, "bench", "cifar", "--train", folder + b"/none", "--recipe", "airbench90"], 1),
    ):
        done = command(*words, variables=variables, cwd=folder)
        assert done.returncode == code and b"Traceback" not in done.stderr, (words, done.stderr)
        if "doctor" not in words:
            assert b"ufe" in done.stdout + done.stderr


def test_what_says_something_shows_it_as_it_can():
    body = "from cgxffcv import app\nfor text in ('l\\u00e4ufe', '\\udce4', '\\U0001f600'): app.say(text)"
    done = command("-c", body)
    assert done.stdout == b"l\\xe4ufe\n\\udce4\n\\U0001f600\n", done.stderr
    done = command("-c", body, variables={"PYTHONIOENCODING": "utf-8"})
    assert done.stdout == "l\u00e4ufe\n\\udce4\n\U0001f600\n".encode(), done.stderr


@pytest.mark.parametrize("words, code", [(["--version"], 0), (["doctor"], 0), (["info", "none.beton"], 1), (["x"], 2)])
def test_streams_that_are_closed(tmp_path, words, code):
    shell = 'exec "$0" -m cgxffcv "$@" >&- 2>&-'
    run_command("sh", "-c", shell, sys.executable, *words, status=code, cwd=tmp_path)


def test_what_is_started_has_the_streams_too():
    """Else the next files that it opens take their numbers, as in a command itself."""
    child = "import os; os.fstat(0), os.fstat(1), os.fstat(2)"
    body = "import subprocess, sys; from cgxffcv import start; start._open_streams()\n"
    body += f"sys.exit(subprocess.run([sys.executable, '-c', {child!r}]).returncode)"
    run_command("sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, body)


def test_an_output_that_is_full():
    with open("/dev/full", "wb") as full:
        done = command("-m", "cgxffcv", "doctor", stdout=full)
    assert done.returncode == 1 and done.stderr == b"cgxffcv: error: No space left on device\n"
