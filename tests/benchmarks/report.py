"""Write `docs/benchmarks.md` from the results that pytest-benchmark saved as JSON.

    python tests/benchmarks/report.py results.json docs/benchmarks.md

Every group is one job; its first row is ours, and the others are given as multiples of it.
"""

import json
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HEAD = """# Benchmarks

Written by `make bench`. The rows of a table were timed one after another in one run of one process:
read the ratios, not the times. "ours" is this package; the other rows do the same work with what
a user would write today, in plain JAX or NumPy, or with another package, where that is installed.
Each job's file under `tests/benchmarks/` says exactly what is timed. Rows named "cold" include
tracing and compilation, all others exclude them.
"""


def packages() -> str:
    """The versions that the times depend on."""
    found = []
    names = ("jax", "numpy", "torch", "curvlinops-for-pytorch", "pyhessian")
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def table(group: str, rows: list[dict]) -> str:
    """One job: median, spread and the ratio of medians to ours."""
    lines = [f"## {group}", "", "| how | median | range | ratio to ours |", "|---|---|---|---|"]
    ours = next((row["stats"]["median"] for row in rows if label(row) == "ours"), None)
    for row in rows:
        stats = row["stats"]
        spread = f"{seconds(stats['min'])} to {seconds(stats['max'])}"
        ratio = f"{stats['median'] / ours:.2f}" if ours else ""
        lines.append(f"| {label(row)} | {seconds(stats['median'])} | {spread} | {ratio} |")
    return "\n".join(lines)


def label(row: dict) -> str:
    """Who did the job: the last word of the test's parameters, or the test's own name."""
    if row["name"].startswith("test_ours_cold"):
        return "ours, cold"
    name = row["param"].split("-")[-1] if row.get("param") else row["name"].removeprefix("test_")
    words = name.replace("_", " ").split()
    return " ".join(word for word in words if word != "hessian")


def main(source: str, target: str) -> None:
    """Read the results at `source` and write the page `target`."""
    results = json.loads(Path(source).read_text())
    cores = results["machine_info"]["cpu"].get("count")
    groups: dict[str, list[dict]] = defaultdict(list)
    for row in results["benchmarks"]:
        groups[row["group"]].append(row)
    parts = [HEAD, f"This run: {cores} cores; {packages()}.", ""]
    parts += [table(group, rows) + "\n" for group, rows in groups.items()]
    Path(target).write_text("\n".join(parts))


if __name__ == "__main__":
    main(*sys.argv[1:])
