"""Runs tests again with narrower instructions than this processor has."""

import os
import subprocess
import sys

import pytest


def pass_on(levels, chosen, path):
    """Checks that the tests of the file whose names the expression chooses pass with each of these instruction sets,
    each in a separate process; instead of one that is missing, the best available one is used."""
    if os.environ.get("CGXFFCV_CPU"):
        pytest.skip("this is one of the processes that the test starts")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, path]
    for level in levels:
        environment = {**os.environ, "CGXFFCV_CPU": level}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, (level, done.stdout)
