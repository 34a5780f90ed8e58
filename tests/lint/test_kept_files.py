"""Files under version control are meant to be there."""

import shutil

import pytest
from checkout import ROOT, run_command


def test_nothing_that_is_ignored_is_kept():
    """A link named .venv, say, which git would put in the place of the folder in every other working copy."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no working copy of git")
    words = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    done = run_command(*words, cwd=ROOT)
    assert not done.stdout, f"in .gitignore, and kept all the same: {done.stdout.split()}"
