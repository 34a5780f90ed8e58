"""What the documents tell people to use exists: commands, files, flags, Python examples."""

import ast
import re

import pytest
from checkout import ROOT, run_command, run_python

from cgxffcv import recipes
from cgxffcv.app import cli
from cgxffcv.app.schema import FLAGS, SCHEMA

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
README = (ROOT / "README.md").read_text()
# Options of other commands than the training script's: bench's, info's, mpirun's.
OTHERS = "--recipe --runs --bits --dtype --thumbnails --allow-run-as-root --bind-to --mca --oversubscribe".split()


def blocks(text, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    text = page.read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), f"{page.name}: make {target}"
    for script in set(re.findall(r"\b([\w./-]+\.(?:sh|py|ipynb|yaml))\b", text)):
        places = [ROOT / script, ROOT / "docs" / script, ROOT / "csrc" / script]
        named = any(place.exists() for place in places) or any(ROOT.glob(f"*/**/{script}"))
        made = script in ("config.yaml", "train.py")  # made by a run; or in a sentence about another program's
        assert named or made or "PATH" in script, f"{page.name} names {script}"


def test_flags_and_parameters_exist():
    flat = {f"--{name}" for flag in FLAGS for name in flag.names} | {"--config-file", "--help", "--help-all", "--json"}
    for page in (ROOT / "README.md", ROOT / "docs/coming-from-ffcv.md", ROOT / "docs/coming-from-torch_cgx.md"):
        if not page.exists():
            continue
        for option in re.findall(r"(?<![\w-])(--[a-z][\w.-]*)", page.read_text()):
            known = option in flat or option.removeprefix("--") in SCHEMA
            other = option in OTHERS
            assert known or other, f"{page.name} names {option}"


def test_every_flat_flag_is_in_the_readme():
    missing = [flag.names[0] for flag in FLAGS if f"--{flag.names[0]}" not in README]
    assert missing == []


def test_every_environment_variable_is_in_the_settings():
    sources = [*(ROOT / "csrc").rglob("*.[ch]*"), *(ROOT / "cgxffcv").rglob("*.py")]
    named = {name for path in sources for name in re.findall(r'"(CGXFFCV_[A-Z0-9_]+)', path.read_text())}
    named |= set(re.findall(r"CGXFFCV_[A-Z0-9_]+", ast.get_docstring(ast.parse((ROOT / "setup.py").read_text()))))
    assert len(named) > 25
    settings = (ROOT / "docs/settings.md").read_text()
    assert sorted(name for name in named if f"`{name}" not in settings) == []


def test_benchmarks_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"cgxffcv bench (\w+)", page.read_text()):
            assert name in cli.BENCHES, f"{page.name}: bench {name}"


def test_recipes_that_are_named_exist():
    for name in re.findall(r"--training\.recipe=(\w+)", README):
        assert name in recipes.RECIPES


def test_python_blocks_parse():
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            ast.parse(block)


def test_the_readmes_python_runs(tmp_path):
    """All but the lines for a PyTorch script, which examples/torch_ddp_hook.py has in full."""
    printed = []
    for block in blocks(README, "python"):
        if "interop.torch" in block:
            continue
        printed.append(run_python("-c", block, cwd=tmp_path).stdout)
    assert len(printed) == 2
    assert printed[0].count("(100, 3, 32, 32) float16 (100, 1)") == 10


def test_the_readme_begins_with_the_two_commands():
    assert blocks(README)[0] == "make train\nmake test\n"


def test_the_project_speaks_of_itself_alone():
    listed = run_command("git", "ls-files", status=None, cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".md", ".py", ".c", ".h", ".sh", ".toml", ".yaml", ".pyi", ".ipynb"} and path.is_file():
            assert not re.search(r"(?<![\w.])/(work|farm)/", path.read_text()), f"{name} names a path of one machine"
