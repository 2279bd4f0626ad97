"""Every name of JAX and its neighbours that this project uses is there, locked and newest."""

import ast
import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.tier import FULL

ROOT = Path(__file__).parent.parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "matfree")


def names(source: str) -> set[str]:
    """Dotted names of `PACKAGES` in a module: what it imports, and every chain that starts there.

    A name bound by an import anywhere in the module counts as bound in all of it.
    """
    tree = ast.parse(source)
    found, bound = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if _ours(name.name):
                    found.add(name.name)
                    top = name.name.partition(".")[0]
                    bound[name.asname or top] = name.name if name.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and _ours(node.module):
            for name in node.names:
                found.add(f"{node.module}.{name.name}")
                bound[name.asname or name.name] = f"{node.module}.{name.name}"
    for node in ast.walk(tree):
        chain, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if chain and isinstance(inner, ast.Name) and inner.id in bound:
            found.add(".".join([bound[inner.id], *reversed(chain)]))
    return found


def used() -> dict[str, list[str]]:
    """Each name that the library and the experiments use, with the files that use it."""
    users: dict[str, list[str]] = {}
    for path in sorted([*ROOT.glob("dltheory/**/*.py"), *ROOT.glob("experiments/**/*.py")]):
        for name in names(path.read_text()):
            users.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return users


def unresolved(wanted: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The names that are not there or that warn when they are asked for, with the reason."""
    for name in sorted(wanted):
        top, *rest = name.split(".")
        found, path = importlib.import_module(top), top
        for part in rest:
            path = f"{path}.{part}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = getattr(found, part)
            except Warning as warning:
                yield name, f"{type(warning).__name__}: {warning}"
                break
            except AttributeError as error:
                try:
                    found = importlib.import_module(path)
                except ImportError:
                    yield name, f"{type(error).__name__}: {error}"
                    break


def _ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def test_a_name_is_found_however_it_is_imported():
    source = """
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
def f(x):
    from jax.scipy.special import erf
    return jax.lax.scan, jnp.exp(x).real, np.exp(x), nn.Dense(3), erf(x.shape)
"""
    assert names(source) == {
        *("jax", "jax.lax", "jax.lax.scan", "jax.numpy", "jax.numpy.exp"),
        *("flax.linen", "flax.linen.Dense", "jax.scipy.special.erf"),
    }


def test_what_is_missing_or_deprecated_is_told(monkeypatch):
    import jax

    def ask(name):
        if name == "old":
            warnings.warn("use new", DeprecationWarning, stacklevel=2)
            return 1
        raise AttributeError(f"no {name}")

    monkeypatch.setattr(jax, "__getattr__", ask, raising=False)
    told = dict(unresolved(["jax.numpy.exp", "jax.old", "jax.gone.deeper", "jax.numpy.gone"]))
    assert list(told) == ["jax.gone.deeper", "jax.numpy.gone", "jax.old"]
    assert told["jax.gone.deeper"] == "AttributeError: no gone"
    assert told["jax.old"] == "DeprecationWarning: use new"


def test_every_name_is_in_the_locked_versions():
    users = used()
    assert len(users) > 100
    assert {name: (why, users[name]) for name, why in unresolved(users)} == {}


@pytest.mark.skipif(not FULL, reason="installs the newest releases: full tier")
def test_every_name_is_in_the_newest_releases(tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    command = [*install, "--disable-pip-version-check", "--target", str(tmp_path), *PACKAGES]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"no newest releases: {installed.stderr.strip().splitlines()[-1]}")
    users = used()
    resolved = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(list(users)),
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert resolved.returncode == 0, resolved.stderr
    told = json.loads(resolved.stdout)
    assert all(Path(place).is_relative_to(tmp_path) for place in told["places"].values()), told
    assert {name: (why, users[name]) for name, why in told["unresolved"]} == {}, told["versions"]


if __name__ == "__main__":
    from importlib.metadata import version

    answer = {
        "places": {name: importlib.import_module(name).__file__ for name in PACKAGES},
        "versions": {name: version(name) for name in PACKAGES},
        "unresolved": list(unresolved(json.load(sys.stdin))),
    }
    print(json.dumps(answer))
