"""Pages of the gallery: all that an experiment says, as Markdown that shows it as it is."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dltheory.experiment import gallery
from dltheory.experiment.claims import Claim
from dltheory.experiment.store import ResultError

DOCSTRING = """Norms of x_1 double at each layer.

Paper    Anon (2020), On doubling: |x_1| * 2
         at each layer.
Run      dltheory run doubling                 (a second)
         dltheory run doubling --profile full  (a minute)
Expect   2, in `float32` too.

Each layer is twice the identity.
"""
CLAIMS = [
    Claim("growth of |x|", 2.0, 2.01, 0.1),
    Claim("at most", 1.0, 3.0, 0.1, "<=", known_failure="rounding"),
]


def experiment(name="doubling", system="gradients"):
    module = SimpleNamespace(__doc__=DOCSTRING, claims=lambda _: CLAIMS)
    request = SimpleNamespace(path=Path("experiments") / system / f"{name}.py")
    return SimpleNamespace(
        name=name, module=module, request=request, sweeps=(), root=None, results=dict
    )


def test_a_docstring_is_taken_apart():
    told = gallery.statement(DOCSTRING)
    assert told.summary == "Norms of x_1 double at each layer."
    assert told.paper == "Anon (2020), On doubling: |x_1| * 2\nat each layer."
    assert told.run.splitlines()[1] == "dltheory run doubling --profile full  (a minute)"
    assert told.expect == "2, in `float32` too."
    assert told.rest == "Each layer is twice the identity."
    assert told.formula == ""


def test_pages_show_statement_figures_verdicts_and_commands(tmp_path):
    figures, out = tmp_path / "figures", tmp_path / "gallery"
    figures.mkdir()
    for name in ("doubling.png", "doubling-slopes.png", "doublings.png", "halving.png"):
        (figures / name).write_bytes(name.encode())
    pages = [experiment(), experiment("halving", "convolution")]
    index, page, _ = gallery.write(pages, figures, out)
    text = page.read_text()
    assert text.startswith("# Norms of x\\_1 double at each layer\n")
    assert "](doubling.png)" in text
    assert "](doubling-slopes.png)" in text
    assert "doublings.png" not in text  # The figure of another experiment.
    assert (out / "doubling-slopes.png").read_bytes() == b"doubling-slopes.png"
    assert "| growth of \\|x\\| | 2 | 2.01 | 0.1 | holds |" in text
    assert "| at most | ≤ 1 | 3 | 0.1 | fails, as recorded: rounding |" in text
    assert "dltheory run doubling --profile full" in text
    assert "\\|x\\_1\\| \\* 2" in text
    assert "in `float32` too" in text
    listed = index.read_text()
    assert listed.index("## Vanishing") < listed.index("doubling.md")
    assert listed.index("## Convolutional") < listed.index("halving.md")
    assert "2 claims, 1 known to fail" in listed
    assert listed.rstrip().endswith("doubling\nhalving\n```")


def test_figures_that_are_not_drawn_are_named(tmp_path):
    with pytest.raises(ResultError, match="has no figure of doubling: run dltheory figures first"):
        gallery.write([experiment()], tmp_path, tmp_path / "out")
