"""The pictures of the packages, compared with lint-imports' contract and the tree, and the length of the README."""

import re
import tomllib

from tests.support.paths import ROOT

PACKAGE = ROOT / "tsallis_rl"


def picture() -> list[str]:
    """The lines of the picture."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.split("```")[1].removeprefix("text").strip().splitlines()


def test_the_picture_is_the_contract_from_top_to_bottom():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["tsallis_rl"])
    commands, *packages = [[name.strip() for name in layer.split("|")] for layer in layers]
    drawn = [match[1] for line in picture() if (match := re.match(r"[ └]{3}(\w+)/", line))]
    assert drawn == [name for layer in packages for name in layer]
    assert sorted(picture()[0].partition("      ")[0].split()) == sorted(commands)


def test_every_file_that_it_names_is_there():
    package = None
    for line in picture()[1:]:
        if match := re.match(r"[ └]{3}(\w+)/", line):
            package = match[1]
        for name in re.split(r", ", line[18:47].strip()):
            path = PACKAGE / package / name
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{package}/{name}"


def test_every_file_that_its_answers_name_is_there():
    section = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("| question | answer |")[2]
    named = re.findall(r"`([\w/]+\.py)`", section)
    assert len(named) > 8
    for name in named:
        assert (PACKAGE / name).is_file() or (ROOT / name).is_file(), name


def test_the_readme_is_read_in_one_sitting_and_names_every_package_command_and_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 250
    tree = text.partition("## Files")[2].split("```")[1]
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"(\w+)/ ", tree)) >= packages
    commands = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert commands <= set(re.findall(r"\w+", tree))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\(docs/(\w+\.md)\)", text))
