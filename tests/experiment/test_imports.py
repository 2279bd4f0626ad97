"""What is slow to import waits until it is used."""

import subprocess
import sys

LOAD = """
import importlib, pkgutil, sys
import dltheory
for module in pkgutil.walk_packages(dltheory.__path__, "dltheory."):
    importlib.import_module(module.name)
slow = "matplotlib dask distributed orbax flax.nnx tyro sklearn scipy.stats mnist1d torch".split()
print(*[name for name in slow if name in sys.modules])
"""


def test_no_module_of_the_library_loads_a_slow_package():
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.split() == []
