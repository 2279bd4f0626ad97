"""What the documentation says is run: code blocks, the output beside them, and all examples."""

import ast
import contextlib
import doctest
import importlib
import io
import re
import textwrap
import tomllib
from pathlib import Path

import jax
import pytest

from dltheory.experiment import cli, execute

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "dltheory").rglob("*.py"))
EXAMPLE = ROOT / "docs" / "examples" / "relu_lengths.py"

BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
NUMBER = re.compile(r"[-+]?\d+(?:\.(?P<decimals>\d+))?(?P<exponent>e[-+]?\d+)?")


@pytest.fixture(autouse=True)
def as_a_user():
    """JAX as it comes, not as the other tests set it."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def blocks(text):
    """The fenced blocks of a page: language, code, line."""
    for match in BLOCK.finditer(text):
        code = textwrap.dedent(match["code"])
        yield match["language"], code, text.count("\n", 0, match.start("code"))


def assert_same_output(printed, shown):
    """The same words; the same numbers, those with decimals up to one unit of the last."""
    got, wanted = printed.split(), shown.split()
    assert len(got) == len(wanted), f"printed:\n{printed}\nthe page shows:\n{shown}"
    for a, b in zip(got, wanted, strict=True):
        same = NUMBER.sub("#", a) == NUMBER.sub("#", b) and all(
            map(same_number, NUMBER.finditer(a), NUMBER.finditer(b))
        )
        assert same, f"printed:\n{printed}\nthe page shows:\n{shown}"


def same_number(got, wanted):
    """Integers exactly; decimals up to one unit of the last, which platforms round differently."""
    if not wanted["decimals"]:
        return got[0] == wanted[0]
    unit = 10.0 ** -len(wanted["decimals"]) * float("1" + (wanted["exponent"] or ""))
    return abs(float(got[0]) - float(wanted[0])) <= 1.01 * unit


def run_page(path):
    """Run the blocks of a page in one namespace; a text block is the output of the one before."""
    text, namespace, printed = path.read_text(), {"__name__": "__main__"}, None
    for language, code, line in blocks(text):
        if language == "python" and code.lstrip().startswith(">>>"):
            run_examples(
                doctest.DocTestParser().get_doctest(code, namespace, path.name, None, line)
            )
        elif language == "python":
            output = io.StringIO()
            # Blank lines in front, so that a traceback points into the page.
            program = compile("\n" * line + code, str(path), "exec")
            with contextlib.redirect_stdout(output):
                exec(program, namespace)
            printed = output.getvalue()
        elif language == "text" and printed is not None:
            assert_same_output(printed, code)
            printed = None


def run_examples(examples):
    report = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(examples, out=report.write, clear_globs=False)
    assert runner.failures == 0, report.getvalue()


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if "```python" in p.read_text()],
)
def test_every_block_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(path)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=str(p.relative_to(ROOT))) for p in MODULES if ">>> " in p.read_text()],
)
def test_every_example_of_a_module_runs(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    assert any(examples.examples for examples in found)
    for examples in found:
        run_examples(examples)


def test_the_experiment_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """The commands that the page names on the file that it shows, for one of its two widths."""
    monkeypatch.setattr(execute, "keep_compilations", lambda: None)
    monkeypatch.chdir(tmp_path)
    for verb in ("run", "figures", "claims"):
        capsys.readouterr()
        assert cli.main([verb, str(EXAMPLE), "--width", "64"]) == 0
    assert (tmp_path / "figures" / "relu_lengths.svg").is_file()

    page = (ROOT / "docs" / "experiments.md").read_text()
    assert f"literalinclude}} {EXAMPLE.relative_to(ROOT / 'docs')}" in page
    table = next(code for language, code, _ in blocks(page) if language == "text")
    shown = "\n".join(line for line in table.splitlines() if "width 128" not in line)
    ruled = re.compile("[\u2500-\u257f]")  # as long as the table is wide
    assert_same_output(ruled.sub(" ", capsys.readouterr().out), ruled.sub(" ", shown))


@pytest.mark.parametrize("package", ["numerics", "networks", "theory", "measure", "experiment"])
def test_the_reference_holds_every_module_that_a_package_offers(package):
    source = (ROOT / "dltheory" / package / "__init__.py").read_text()
    tree = ast.parse(source)
    offered = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    assert set(re.findall(rf"automodule:: dltheory\.{package}\.(\w+)", page)) == offered
    assert set(re.findall(r"^- `(\w+)`:", ast.get_docstring(tree) or "", re.M)) == offered


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_every_link_inside_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", path.read_text())
    assert [target for target in targets if not (path.parent / target).is_file()] == []


def test_every_dependency_earns_its_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[>=<]", line)[0] for group in groups for line in group}
    page = (ROOT / "docs" / "contributing.md").read_text()
    assert names == set(re.findall(r"^- `([\w-]+)`: .+\.$", page, re.M))


# --- the checks can fail ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("s 0.447, theory 1", "s 0.448, theory 1", True),
        ("s 0.446, theory 1", "s 0.448, theory 1", False),
        ("s 0.448, theory 2", "s 0.448, theory 1", False),
        ("q 0.448", "s 0.448", False),
        ("0.1 0.2", "0.1", False),
        ("1.23e-05", "1.24e-05", True),
        ("1.23e-05", "1.26e-05", False),
        ("hidden[3]", "hidden[2]", False),
        ("nan", "0.5", False),
    ],
)
def test_an_output_that_differs_is_seen(printed, shown, same):
    if same:
        assert_same_output(printed, shown)
    else:
        with pytest.raises(AssertionError, match="the page shows"):
            assert_same_output(printed, shown)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nx = 1\n```\n```python\nassert x == 1\n```\n", None),
        ("```python\nx = 1 / 0\n```\n", ZeroDivisionError),
        ("```python\nprint(1)\n```\nIt prints\n```text\n2\n```\n", AssertionError),
        ("```python\n>>> 1 + 1\n3\n```\n", AssertionError),
        ("- in a list\n\n  ```python\n  x\n  ```\n", NameError),
        ("```bash\nrm x\n```\n", None),
    ],
)
def test_a_page_that_is_wrong_is_seen(page, error, tmp_path):
    file = tmp_path / "page.md"
    file.write_text(page)
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        run_page(file)
