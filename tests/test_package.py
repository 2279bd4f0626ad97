"""What is published: the wheel and the source archive hold what they should, and the wheel runs."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.tier import FULL

ROOT = Path(__file__).parent.parent
# What a run leaves behind, a cache, or a virtual environment.
LEFT_BEHIND = re.compile(r"(^|/)(results|figures|_build|__pycache__|\.[a-z_-]*cache|\.venv|\.git)/")

pytestmark = pytest.mark.skipif(not FULL, reason="builds a wheel and imports it: full tier")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of the wheel and of the source archive, and the folder with the wheel unpacked."""
    folder = tmp_path_factory.mktemp("package")
    run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    unpacked = folder / "unpacked"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(unpacked)
        files = {name: opened.read(name) for name in opened.namelist()}
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.isfile()]
        streams = {member.name.partition("/")[2]: opened.extractfile(member) for member in members}
        sources = {name: stream.read() for name, stream in streams.items() if stream}
    return files, sources, unpacked


def run(command, cwd, **variables):
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def foreign(files):
    """Names of files that are left behind by a run, or that hold the path of this checkout."""
    here = str(ROOT).encode()
    return [name for name, text in files.items() if LEFT_BEHIND.search(name) or here in text]


def test_what_does_not_belong_is_seen():
    here = f"# {ROOT}/x".encode()
    files = {"results/a.npz": b"", "docs/_build/a": b"", "a/__pycache__/b.pyc": b"", "a.py": here}
    assert foreign({**files, "dltheory/experiment/figures.py": b"x"}) == list(files)


def test_the_wheel_holds_the_typed_package_and_its_licence_and_nothing_else(built):
    files, _, _ = built
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dltheory").rglob("*.py")}
    (info,) = {name.partition("/")[0] for name in files} - {"dltheory"}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    wanted = {"dltheory/py.typed", *modules, *(f"{info}/{name}" for name in about)}
    assert set(files) == wanted
    assert files[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert foreign(files) == []


def test_the_source_archive_holds_the_same_package_and_no_results(built):
    files, sources, _ = built
    assert {"LICENSE", "README.md", "pyproject.toml", "dltheory/py.typed"} <= set(sources)
    package = {name: text for name, text in files.items() if name.startswith("dltheory/")}
    assert package == {name: text for name, text in sources.items() if name in package}
    assert foreign(sources) == []


def test_the_wheel_runs_the_first_look_outside_of_the_repository(built, tmp_path):
    files, _, unpacked = built
    readme = (ROOT / "README.md").read_text()
    block, shown = re.findall(r"```(?:python|text)\n(.*?)```", readme, re.S)[:2]
    where = "import dltheory\nprint(dltheory.__version__, dltheory.__file__)\n"
    script = tmp_path / "first_look.py"
    script.write_text(where + block)
    command = [sys.executable, "-W", "error::DeprecationWarning:dltheory", str(script)]
    first, *printed = run(command, cwd=tmp_path, PYTHONPATH=str(unpacked)).splitlines()
    version, place = first.split()
    assert Path(place) == unpacked / "dltheory" / "__init__.py"
    assert f"dltheory-{version}.dist-info/METADATA" in files
    # The numbers themselves are the matter of tests/test_docs.py, which knows their tolerance.
    number = re.compile(r"\d+\.\d+")
    assert [number.sub("", line) for line in printed] == number.sub("", shown).splitlines()
