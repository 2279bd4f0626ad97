"""The documentation: built by `make docs`, with warnings as errors and without the network."""

import importlib.metadata
from pathlib import Path

project = "dltheory"
author = "The dltheory authors"
copyright = author  # noqa: A001
release = version = importlib.metadata.version("dltheory")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
default_role = "code"  # in docstrings, as in Markdown
exclude_patterns = ["_build", "examples"]

# The gallery is there once `make figures` has written it.
_gallery = Path(__file__).parent / "gallery" / "index.md"
if not _gallery.exists():
    _gallery.parent.mkdir(exist_ok=True)
    _gallery.write_text("# Gallery\n\n`make figures` writes it: nothing has been computed yet.\n")

myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

# Shapes and meanings are in the docstrings; expanded type aliases would drown them.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False

html_theme = "furo"
html_title = "dltheory"
html_copy_source = False
html_show_sphinx = False


def _skip(app, what, name, obj, skip, options):
    """The fields of a NamedTuple are described once, by its docstring."""
    del app, what, name, options
    return skip or type(obj).__name__ == "_tuplegetter"


def setup(app):
    """Register what autodoc leaves out."""
    app.connect("autodoc-skip-member", _skip)
