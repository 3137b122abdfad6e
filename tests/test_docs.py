"""What README.md and docs/ show runs as it stands: blocks of Python, commands, links, examples."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from molrmog.interfaces.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
ANY = "digits"  # in the place of a word in capitals
SLOW = ("README.md", "networks.md", "jump_into_a_pipeline.py")  # they train


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """Command lines that stand in an indented block, without what is said of them."""
    lines = re.findall(r"^    (molrmog (?!.*\|).*)$", page.read_text(), re.MULTILINE)
    return [re.split(r" {2,}", line)[0] for line in lines]


def each(paths):
    """A parameter for each path, of which some are slow."""
    return [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name in SLOW else []) for p in paths]


@pytest.mark.parametrize("page", each(page for page in PAGES if blocks(page)))
def test_python_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for i, code in enumerate(blocks(page)):
        exec(compile(code, f"{page.name}, block {i + 1}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_of_a_page_are_understood(page):
    for line in commands(page):
        words = [ANY if re.fullmatch(r"\[?[A-Z]+\]?", word) else word for word in shlex.split(line)[1:]]
        assert build_parser().parse_args(words).command == words[0], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("script", each(sorted(ROOT.glob("examples/*.py"))))
def test_examples_run(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out
