"""What the documentation says is run: code blocks, the output beside them, and all examples."""

import ast
import contextlib
import doctest
import importlib
import io
import itertools
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
import unicodedata
from pathlib import Path

import jax
import pytest

from dltheory.experiment import cli, execute
from tests.tier import FULL

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "dltheory").rglob("*.py"))
EXAMPLE = ROOT / "docs" / "examples" / "relu_lengths.py"

BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
SURNAME = r"(?:van |de )?([A-Z][\w'-]+)"
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
    assert dead_links(path) == []


def dead_links(path):
    """Links of a page to files, headings and names of Python that are not there."""
    text = FENCE.sub("", path.read_text())
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if not re.match(r"\w+:", link) and not (
            target.is_file() and (not anchor or anchor in anchors(target.read_text()))
        ):
            dead.append(link)
    for name in re.findall(r"\{(?:func|mod|class)\}`(?:[^`<]*<)?~?(dltheory[\w.]*)", text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            dead.append(name)
    return dead


def anchors(text):
    """What links to parts of a page: its labels, and its headings as GitHub and MyST name them."""
    text = FENCE.sub("", text)
    titles = [title.lower() for title in re.findall(r"^#{1,3} (.+)$", text, re.M)]
    slugs = {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


def test_every_source_of_a_page_is_a_reference_and_every_reference_is_cited():
    page = plain(ROOT / "docs" / "references.md")
    listed = re.findall(rf"^- {SURNAME}[^.(]*?\(([\d, ]+)\)", page.replace(" et al.", ""), re.M)
    listed = {(name, year) for name, years in listed for year in years.split(", ")}
    assert len(listed) > 100

    sources = [re.findall(r"^:Source: (.+(?:\n +.+)*)", plain(p), re.M) for p in PAGES]
    works = re.split(r"; *", "; ".join(itertools.chain(*sources)))
    cited = {
        (found[1], year)
        for work in works
        if (found := re.match(SURNAME, work))
        for year in re.findall(r"\b(?:19|20)\d\d\b", work)
    }
    assert cited - listed == set()

    files = [*MODULES, *(ROOT / "experiments").rglob("*.py"), *PAGES]
    texts = [plain(file) for file in files if file.name != "references.md"]
    words = [set(re.findall(r"[A-Z][\w'-]+|\b\d{4}\b", text)) for text in texts]
    assert [key for key in sorted(listed) if not any(set(key) <= found for found in words)] == []


@pytest.mark.skipif(not FULL, reason="`make docs` does the same, in half a minute")
def test_the_site_builds_without_a_warning(tmp_path):
    build = "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")
    command = [sys.executable, *build, str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "howto" / "slurm.html").is_file()


def plain(path):
    """The text of a file without accents, which some of its writers could not type."""
    letters = unicodedata.normalize("NFKD", path.read_text())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


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


@pytest.mark.parametrize(
    ("link", "dead"),
    [
        ("[a](other.md)", False),
        ("[a](other.md#a-heading-of-its-own)", False),
        ("[a](other.md#labelled)", False),
        ("[a](#here)", False),
        ("[a](https://example.org/#nowhere)", False),
        ("{func}`~dltheory.theory.mean_field.q_map`", False),
        ("[a](another.md)", True),
        ("[a](other.md#in-code)", True),
        ("[a](#there)", True),
        ("![a](images/none.svg)", True),
        ("{func}`text <dltheory.theory.mean_field.q_mop>`", True),
    ],
)
def test_a_link_that_is_dead_is_seen(link, dead, tmp_path):
    other = "## A `heading`, of its own\n\n(labelled)=\n```python\n# in code\n```\n"
    (tmp_path / "other.md").write_text(other)
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n\n{link}\n")
    assert bool(dead_links(page)) == dead
