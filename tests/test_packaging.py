"""What is installed is what is on disk: packages, data files, console script, pinned versions."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"attacks", "certify", "defenses"}
MOST = 25_000_000
"""Bytes a wheel may have."""


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def folders() -> dict[str, Path]:
    """Package name -> folder, of every folder with an __init__.py under the core and the rooms."""
    found = {}
    for top in ("robustkit", *sorted(ROOMS)):
        prefix = "robustkit" if top == "robustkit" else f"robustkit.{top}"
        for init in sorted((ROOT / top).rglob("__init__.py")):
            inner = init.parent.relative_to(ROOT / top).parts
            if top == "robustkit" and inner and inner[0] in ROOMS:
                continue  # the committed links, where rglob follows them
            found[".".join([prefix, *inner])] = init.parent
    return found


def test_every_package_is_listed(config: configparser.ConfigParser) -> None:
    listed = lines(config["options"]["packages"])
    assert sorted(listed) == sorted(folders())
    assert len(listed) == len(set(listed))


def test_no_python_file_lies_outside_a_package() -> None:
    packages = set(folders().values())
    stray = [file for folder in packages for file in folder.rglob("*.py") if file.parent not in packages and not in_link(file)]
    assert stray == []


def in_link(file: Path) -> bool:
    inner = file.relative_to(ROOT).parts
    return inner[0] == "robustkit" and inner[1] in ROOMS


def test_rooms_are_mapped_and_linked(config: configparser.ConfigParser) -> None:
    mapped = dict(re.split(r"\s*=\s*", line) for line in lines(config["options"]["package_dir"]))
    assert mapped == {"robustkit": "robustkit", **{f"robustkit.{room}": room for room in ROOMS}}
    for room in ROOMS:
        link = ROOT / "robustkit" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..") / room


def data_files() -> list[str]:
    """Everything in the packages that is not Python, as a wheel names it."""
    found = []
    for name, folder in folders().items():
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix not in (".py", ".pyc"):
                found.append(f"{name.replace('.', '/')}/{file.name}")
    return found


def test_every_data_file_is_declared(config: configparser.ConfigParser) -> None:
    declared = {
        f"{package.replace('.', '/')}/{pattern}"
        for package, patterns in config["options.package_data"].items()
        for pattern in re.split(r"[,\s]+", patterns.strip())
    }
    files = data_files()
    assert {"robustkit/py.typed", "robustkit/report/template.html.j2"} <= set(files)
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in declared)] == []
    assert [pattern for pattern in declared if not any(fnmatch(file, pattern) for file in files)] == []


def test_every_requirement_is_pinned_within_its_bounds(config: configparser.ConfigParser) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pinned = [requirements.Requirement(line) for line in lines((ROOT / "constraints.txt").read_text())]
    here = {pin.name: pin for pin in pinned if pin.marker is None or pin.marker.evaluate()}
    asked = lines(config["options"]["install_requires"]) + lines(config["options.extras_require"]["test"])
    for text in asked:
        wanted = requirements.Requirement(text)
        assert wanted.name in here, f"{wanted.name} is not in constraints.txt"
        (pin,) = here[wanted.name].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), (
            f"constraints.txt pins {wanted.name} {pin.version}, setup.cfg asks for {wanted.specifier}"
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), the wheel built from the unpacked sdist; of a copy, so that the tree stays clean."""
    if find_spec("build") is None:
        pytest.skip("the package `build` is not installed: pip install -e '.[test]'")
    copy = tmp_path_factory.mktemp("source") / "robustkit"
    skipped = shutil.ignore_patterns(
        ".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs", ".venv", "venv"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=skipped)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_every_file_once(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        held = [name for name in wheel.namelist() if ".dist-info/" not in name]
    modules = [f"{name.replace('.', '/')}/{file.name}" for name, folder in folders().items() for file in folder.glob("*.py")]
    assert sorted(held) == sorted([*modules, *data_files()])
    assert built[1].stat().st_size < MOST


def test_the_sdist_holds_every_file_once(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        held = [Path(*Path(name).parts[1:]).as_posix() for name in sdist.getnames()]
    assert len(held) == len(set(held))
    assert [name for name in held if name.startswith(tuple(f"robustkit/{room}/" for room in ROOMS))] == []
    wanted = ["LICENSE", "README.md", "constraints.txt", "tests/conftest.py", "attacks/pgd.py", "benchmarks/pgd_speed.py"]
    assert [name for name in wanted if name not in held] == []


def test_the_wheel_says_what_it_is(built: tuple[Path, Path]) -> None:
    from robustkit import __version__

    with zipfile.ZipFile(built[1]) as wheel:
        about = metadata(wheel, "METADATA")
        scripts = configparser.ConfigParser()
        scripts.read_string(read(wheel, "entry_points.txt").decode())
        assert b"Apache License" in read(wheel, "licenses/LICENSE")
    assert (about["Name"], about["Version"], about["Requires-Python"]) == ("robustkit", __version__, ">=3.10")
    assert about["License-Expression"] == "Apache-2.0"
    assert dict(scripts["console_scripts"]) == {"robustkit": "robustkit.cli:run"}


def metadata(wheel: zipfile.ZipFile, name: str) -> Message:
    return message_from_bytes(read(wheel, name))


def read(wheel: zipfile.ZipFile, name: str) -> bytes:
    (path,) = [held for held in wheel.namelist() if held.endswith(f".dist-info/{name}")]
    return wheel.read(path)
