"""The house stands: imports go down, a name has one home, what is public is explained."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dltheory"
# Each part of the library, with the parts it may import besides itself.
BELOW = {
    "numerics": set(),
    "networks": {"numerics"},
    "theory": {"networks", "numerics"},
    "measure": {"networks", "numerics"},
    "experiment": {"theory", "measure", "networks", "numerics"},
}
OUTSIDE = {"experiments", "tests", "docs"}


def modules():
    """Every module of the library: its dotted name, its syntax tree, whether it is a package."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if package else parts), ast.parse(path.read_text()), package


# --- imports go down -------------------------------------------------------------------------


def imported(name, tree, package=False):
    """Dotted names of all that a module imports, wherever in the file the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + package]
            source = [*(base if node.level else []), *((node.module or "").split("."))]
            source = ".".join(part for part in source if part)
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((c.value, node.lineno) for c in node.args if isinstance(c, ast.Constant))


def floor(name):
    return f"{name}.".split(".")[1]


def import_faults(name, tree, package=False):
    for target, line in imported(name, tree, package):
        top, home, below = target.split(".")[0], floor(name), floor(target)
        if top in OUTSIDE:
            yield f"{name}:{line} imports {top}, which stands outside of the library"
        elif top == "dltheory" and home in BELOW and below not in {home, *BELOW[home]}:
            yield f"{name}:{line} imports {target}: {home} may import {sorted(BELOW[home])}"


# --- a public name has one home --------------------------------------------------------------


def is_public(name):
    return not name.startswith("_")


def exists(name):
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def bound(tree):
    """What the imports at the top of a module bind."""
    return {
        (alias.asname or alias.name).split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def assigned(tree):
    """Assignments at the top of a module: names, value, line."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield [t.id for t in node.targets if isinstance(t, ast.Name)], node.value, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield [node.target.id], node.value, node.lineno


def home_faults(name, tree, package=False):
    """A name is at home where it is defined, and an ordinary import is no second home.

    These are: a package that imports more than modules, a star, `x as x`, a foreign name in
    `__all__`, and an object assigned to a public name besides its own.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name == "*" or alias.asname == alias.name:
                    yield f"{name}:{node.lineno} gives {alias.name} a second home"
    if package:
        for target, line in imported(name, tree, package):
            if target.startswith("dltheory") and not exists(target):
                yield f"{name}:{line} imports {target}, which is no module"
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and is_public(node.name):
                yield f"{name}:{node.lineno} defines {node.name}: a package holds modules only"
    foreign = bound(tree)
    home = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    home |= {n for names, *_ in assigned(tree) for n in names}
    for names, value, line in assigned(tree):
        if names == ["__all__"]:
            listed = ast.literal_eval(value)
            yield from (f"{name}:{line} exports {n}, at home elsewhere" for n in {*listed} - home)
        root = value
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and (root.id in foreign or root.id in home):
            yield from (
                f"{name}:{line} makes {n} another name of {ast.unparse(value)}"
                for n in names
                if is_public(n)
            )


# --- what is public is explained -------------------------------------------------------------


def arguments(function, method):
    a = function.args
    named = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
    named = named[1:] if method and not static else named
    return [x.arg for x in [*named, a.vararg, a.kwarg] if x is not None]


def body(function):
    """The nodes of a function without those of the functions inside it."""
    rest = list(function.body)
    while rest:
        node = rest.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            rest += ast.iter_child_nodes(node)


def answers(function):
    """The section that says what comes back: Returns, Yields, or None."""
    nodes = list(body(function))
    if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in nodes):
        return "Yields"
    valued = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    return "Returns" if valued else None


# Modules that no user calls: the inner parts of the one named beside each.
MACHINERY = {
    "dltheory.experiment.parts",  # experiment.execute
    "dltheory.experiment.programs",  # experiment.execute
    "dltheory.measure.arguments",  # measure.backprop
    "dltheory.measure.asymptotics",  # measure.activations
    "dltheory.measure.batches",  # measure.jacobians
    "dltheory.measure.branches",  # measure.regions
    "dltheory.measure.contractions",  # measure.ntk
    "dltheory.measure.factored",  # measure.ntk
    "dltheory.measure.gradient_check",  # measure.backprop
    "dltheory.measure.passes",  # measure.jacobians and its kin
    "dltheory.measure.slope_estimates",  # measure.backprop
    "dltheory.measure.polygons",  # measure.regions
    "dltheory.measure.spectra",  # measure.jacobians
    "dltheory.measure.stacks",  # measure.jacobians
    "dltheory.measure.timing",  # measure.backprop
    "dltheory.networks.layers",  # networks.sites
    "dltheory.networks.program",  # networks.sites
    "dltheory.numerics.branch_and_bound",  # numerics.intervals
    "dltheory.numerics.double_double",  # numerics.simplex_sup
    "dltheory.numerics.interval_arithmetic",  # numerics.intervals
    "dltheory.numerics.interval_rules",  # numerics.intervals
    "dltheory.numerics.simplex_forms",  # numerics.simplex_sup
    "dltheory.numerics.stratified",  # numerics.log_spectrum
    "dltheory.numerics.gaussian_axis",  # numerics.gaussian
    "dltheory.theory.fixed_points",  # theory.mean_field
    "dltheory.theory.polylines",  # theory.constructions
    "dltheory.theory.slope_law",  # theory.free_probability
    "dltheory.theory.spectral_curve",  # theory.free_probability
    "dltheory.theory.targets",  # theory.approximation
}


def docstring_faults(name, tree):
    def of_function(path, function, method):
        text = ast.get_docstring(function)
        if not text:
            yield f"{path}:{function.lineno} has no docstring"
            return
        # A method is read with its class, and machinery by those who change it: one line will do.
        if method or name in MACHINERY:
            return
        wanted = [answers(function)] if answers(function) else []
        missing = [section for section in wanted if f"\n{section}:" not in text]
        if names := arguments(function, method):
            if "\nArgs:" not in text:
                missing.append("Args")
            else:
                explained = text.partition("\nArgs:")[2].partition("\n\n")[0]
                missing += [n for n in names if f"{n}:" not in explained]
        yield from (f"{path}:{function.lineno} does not explain {m}" for m in missing)

    if not ast.get_docstring(tree):
        yield f"{name}:1 has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and is_public(node.name):
            yield from of_function(f"{name}.{node.name}", node, method=False)
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            if not ast.get_docstring(node):
                yield f"{name}.{node.name}:{node.lineno} has no docstring"
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and is_public(member.name):
                    path = f"{name}.{node.name}.{member.name}"
                    yield from of_function(path, member, method=True)


# --- the library -----------------------------------------------------------------------------


def test_imports_go_down_and_never_sideways():
    assert [fault for module in modules() for fault in import_faults(*module)] == []


def test_every_public_name_has_one_home():
    assert [fault for module in modules() for fault in home_faults(*module)] == []


def test_every_public_name_is_explained():
    assert [fault for name, tree, _ in modules() for fault in docstring_faults(name, tree)] == []


def test_every_part_is_on_the_plan():
    assert {floor(name) for name, *_ in modules()} <= {"", *BELOW}


# --- the checks can fail ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "count"),
    [
        ("dltheory.numerics.a", "from dltheory.numerics import norms\nimport jax", 0),
        ("dltheory.experiment.a", "from dltheory.theory import dual", 0),
        ("dltheory.numerics.a", "import dltheory.networks.sites", 1),
        ("dltheory.networks.a", "from dltheory.experiment.sweep import Sweep", 1),
        ("dltheory.theory.a", "from dltheory import measure, numerics", 1),
        ("dltheory.measure.a", "def f():\n    from dltheory.theory.dual import kernel", 1),
        ("dltheory.theory.a", "if TYPE_CHECKING:\n    from dltheory.measure import ntk", 1),
        ("dltheory.theory.a", "from ..measure import ntk", 1),
        ("dltheory.theory.a", "from . import dual", 0),
        ("dltheory.theory.a", "importlib.import_module('dltheory.measure.ntk')", 1),
        ("dltheory.experiment.a", "import experiments.gradients", 1),
        ("dltheory.numerics.a", "from tests.facts import FACTS", 1),
        ("dltheory.numerics.a", "import dltheory", 1),
    ],
)
def test_a_wrong_import_is_seen(name, source, count):
    assert len(list(import_faults(name, ast.parse(source)))) == count


@pytest.mark.parametrize(
    ("source", "package", "count"),
    [
        (
            "from jax import Array\nfrom dltheory.numerics.results import Moments\n_a = Array",
            False,
            0,
        ),
        ("import numpy as np\nEPS = np.finfo(float).eps\nNAMES = ['a']", False, 0),
        ("from math import *", False, 1),
        ("from dltheory.numerics.results import Moments as Moments", False, 1),
        ("from math import pi\n__all__ = ['pi']", False, 1),
        ("from math import pi\ntau = pi", False, 1),
        ("import jax\nArray: type = jax.Array", False, 1),
        ("def f(): pass\ng = f", False, 1),
        ("from dltheory.numerics import norms, results", True, 0),
        ("from . import norms", True, 0),
        ("from dltheory.numerics.norms import global_norm", True, 1),
        ("from .norms import global_norm", True, 1),
        ("def f(): pass", True, 1),
        ("def __getattr__(name): pass", True, 0),
    ],
)
def test_a_second_home_is_seen(source, package, count, monkeypatch):
    monkeypatch.setitem(globals(), "exists", lambda name: name.count(".") <= 2)
    assert len(list(home_faults("dltheory.numerics", ast.parse(source), package))) == count


EXPLAINED = '''
"""Module."""
def f(x, *, y):
    """Do it.

    Args:
        x: One.
        y: Two.

    Returns:
        Three.
    """
    return x + y

class C:
    """Class."""
    @property
    def p(self):
        """Property."""
        return 1
    def m(self):
        """Do it."""
        def inner(z):
            return z
    def _hidden(self, a): return a

def _hidden(a): return a
'''


@pytest.mark.parametrize(
    ("old", "new", "count"),
    [
        ("", "", 0),
        ('"""Module."""', "", 1),
        ('"""Class."""', "", 1),
        ('"""Property."""', "", 1),
        ("    Args:", "    Arguments:", 1),
        ("    Returns:", "    Gives:", 1),
        ("        y: Two.\n", "", 1),
        ("return x + y", "yield x", 1),
        ("return x + y", "pass", 0),
        ("def _hidden(a)", "def shown(a)", 1),
        ("def _hidden(self, a)", "def shown(self, a)", 1),
    ],
)
def test_a_missing_explanation_is_seen(old, new, count):
    faults = list(docstring_faults("m", ast.parse(EXPLAINED.replace(old, new, 1))))
    assert len(faults) == count, faults
