"""The wheel that is built from this tree: what it holds, and that its commands need no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import tsallis_rl
from tests.support.paths import ROOT
from tsallis_rl.config.files import known_names


def test_the_version_stands_in_one_place_and_the_citation_has_it():
    assert f"\nversion: {tsallis_rl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert tsallis_rl.__version__ not in (ROOT / "setup.py").read_text()


@pytest.mark.slow
def test_the_commands_of_an_installed_wheel_run_by_name_and_by_path_where_no_checkout_is(tmp_path):
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    for name in ("tsallis_rl", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    elsewhere.mkdir()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (metadata,) = site.glob("*.dist-info/METADATA")
    assert Parser().parsestr(metadata.read_text())["Version"] == tsallis_rl.__version__
    assert (site / "tsallis_rl" / "py.typed").exists()
    assert {file.name for file in site.iterdir()} == {"tsallis_rl", metadata.parent.name}

    def run(*arguments: str) -> str:
        env = os.environ | {"PYTHONPATH": str(site)}
        words = [sys.executable, *(() if arguments[0] == "-c" else ("-m",)), *arguments]
        done = subprocess.run(words, cwd=elsewhere, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "* estimator.q " in run("tsallis_rl.main", "--config=hops:q=0.5", "--show_config")
    shutil.copy(ROOT / "configs" / "finq.py", elsewhere / "mine.py")
    assert "* estimator.q " in run("tsallis_rl.main", "--config=mine.py:q=0.5", "--show_config")
    assert "--config=hotpotqa:" in run("tsallis_rl.sweep", "--grid=figure4", "--dry-run")
    assert "python -m tsallis_rl.replay" in run("tsallis_rl")
    loads = "from tsallis_rl.config.files import *; from tsallis_rl.sweeps.grid import load_blocks\nprint(CONFIGS)\n"
    folder, *grids = run("-c", f"{loads}for name in known_names('--grid'): print(name, load_blocks(name))").splitlines()
    assert Path(folder) == site / "tsallis_rl" / "_configs"
    assert [line.split()[0] for line in grids] == known_names("--grid")
