"""What of a file counts as the code of a trial."""

import functools
import sys

import pytest

from dltheory.experiment import catalogue, provenance

FILE = '''"""A file."""

import math
from dataclasses import dataclass

RATE = 1.0
COLOR = "red"
OFFSETS = {}
OFFSETS["a"] = 1


@dataclass(frozen=True)
class Config:
    width: int = 3

    @property
    def area(self):
        return self.width**POWER


POWER = 2


def decorated(f):
    return f


def helper(x):
    return RATE * math.sqrt(x)


@decorated
def trial(key, config):
    return {"a": helper(config.area)}


def sweeps(profile, config):
    return [profile, lambda key, config: trial(key, config)]


def figure(results):
    return COLOR


def claims(results):
    return helper(results)
'''


def code(tmp_path, text, pick=lambda module: module.trial):
    path = tmp_path / "file.py"
    path.write_text(text)
    module = catalogue._import(path)
    try:
        return provenance.code(pick(module), module.Config())
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("RATE = 1.0", "RATE = 2.0", True),
        ("POWER = 2", "POWER = 3", True),
        ("RATE * math", "2 * RATE * math", True),
        ("width: int = 3", "width: int = 4", True),
        ("return f\n", "return lambda *args: f(*args)\n", True),
        ("@decorated\n", "@decorated\n@decorated\n", True),
        ("import math", "import cmath as math", True),
        ('["a"] = 1', '["a"] = 2', True),
        ('COLOR = "red"', 'COLOR = "blue"', False),
        ("return COLOR", "return 1", False),
        ("return helper(results)", "return 0", False),
        ('"""A file."""', '"""The file."""\n\n# with a comment', False),
        ("return [profile, lambda", "return [1, lambda", False),
    ],
)
def test_what_the_trial_reaches_counts_and_nothing_else(tmp_path, old, new, counts):
    assert FILE.count(old) == 1
    assert (code(tmp_path, FILE) != code(tmp_path, FILE.replace(old, new))) == counts


def test_a_trial_without_a_name_of_its_own_counts_as_what_holds_it(tmp_path):
    inner = lambda module: module.sweeps("quick", None)[1]
    other = FILE.replace("return [profile, lambda", "return [1, lambda")
    assert code(tmp_path, FILE, inner) != code(tmp_path, other, inner)
    partial = lambda module: functools.partial(module.trial, 0)
    assert code(tmp_path, FILE, partial) == code(tmp_path, FILE)
    top = FILE + "\n\nnameless = lambda key, config: RATE\n"
    nameless = lambda module: module.nameless
    assert code(tmp_path, top, nameless) != code(
        tmp_path, top.replace("return COLOR", "return 1"), nameless
    )


def test_where_there_is_no_file_there_is_no_code(tmp_path):
    class Callable:
        def __call__(self):
            """Do nothing."""

    assert provenance.code(Callable(), None) is provenance.code(len, None) is None
    path = tmp_path / "gone.py"
    path.write_text("def trial(key, config): ...")
    module = catalogue._import(path)
    path.unlink()
    assert provenance.code(module.trial, None) is None
    del sys.modules[module.__name__]
