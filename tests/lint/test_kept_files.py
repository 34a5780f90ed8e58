"""Files under version control are meant to be there."""

import shutil
import subprocess

import pytest
from checkout import ROOT


def test_nothing_that_is_ignored_is_kept():
    """A link named .venv, say, which git would put in the place of the folder in every other working copy."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no working copy of git")
    words = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout, f"in .gitignore, and kept all the same: {done.stdout.split()}"
