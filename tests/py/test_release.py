"""The release's workflow: those parts that can be run here, and that its jobs wait for each other."""

import pytest
import yaml
from checkout import ROOT, run_command

JOBS = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]


def check(folder, kind, name, version="1.2.0", log="## 1.2.0 (2026-11-30)\n"):
    (folder / "pyproject.toml").write_text(f'[project]\nname = "cgxffcv"\nversion = "{version}"\n')
    (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n{log}")
    (script,) = [step["run"] for step in JOBS["version"]["steps"] if "run" in step]
    env = {"GITHUB_REF_TYPE": kind, "GITHUB_REF_NAME": name, "PATH": "/usr/bin:/bin"}
    return run_command("bash", "-e", "-c", script, status=None, cwd=folder, env=env)


@pytest.mark.parametrize("kind, name", [("tag", "v1.2.0"), ("branch", "main")])
def test_a_tag_of_the_packages_version_passes(tmp_path, kind, name):
    done = check(tmp_path, kind, name, log="## 1.2.0 (2026-11-30)\n" if kind == "tag" else "")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["v1.2.1", "1.2.0", "v1.2", "v1.2.0rc1"])
def test_another_tag_is_refused(tmp_path, name):
    done = check(tmp_path, "tag", name)
    assert done.returncode == 1
    assert done.stdout == f"::error::tag {name}: pyproject.toml has version 1.2.0; expected tag v1.2.0\n"


@pytest.mark.parametrize("log", ["", "## 1.2.0 (unreleased)\n", "## 1.2.0.1 (2026-11-30)\n"])
def test_a_changelog_without_the_release_is_refused(tmp_path, log):
    done = check(tmp_path, "tag", "v1.2.0", log=log)
    assert (done.returncode, done.stdout) == (1, "::error::tag v1.2.0: CHANGELOG.md has no '## 1.2.0 (DATE)'\n")


def test_nothing_is_built_before_the_version_is_checked_nor_published_before_all_is_tested():
    def before(job):
        needs = JOBS[job].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        return set(needs).union(*map(before, needs))

    assert all("version" in before(job) for job in JOBS if job != "version")
    assert before("publish") == set(JOBS) - {"publish"}
