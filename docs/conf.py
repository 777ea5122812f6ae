"""Sphinx configuration. Builds offline: no page is fetched unless it is asked for.

The notebooks are run in the build, and an error in one fails it. ``CFM_DOCS_EXECUTE=0`` shows
their committed outputs instead; ``CFM_DOCS_INTERSPHINX=1`` links to the documentation of other
packages (needs a network). An image without alternative text fails the build
(``_alternative_text.py``).
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # for the extensions of this folder

project = "cfm"
author = "cfm developers"
copyright = "2026, cfm developers"
release = version = installed_version("cfm-tools")

extensions = [
    "_alternative_text",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["phone.css"]
html_title = f"cfm {release}"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}

# --- API pages from the docstrings
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_ivar = True  # fields of dataclasses are described once, in the class
napoleon_use_rtype = False
napoleon_preprocess_types = False

if os.environ.get("CFM_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
    }

# --- Markdown and notebooks
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("CFM_DOCS_EXECUTE") == "0" else "force"
nb_execution_timeout = 120  # seconds, each cell
nb_execution_raise_on_error = True
nb_merge_streams = True
# Kernels take it from here; with make's "Agg" a notebook would show no figure.
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"


def _copy_tutorials() -> None:
    """Notebooks live beside the code in tutorials/; Sphinx wants them below docs/.

    Their links to pages hold where they live, in Jupyter and on GitHub, and are bent here.
    """
    target = HERE / "tutorials" / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../../")
        (target / notebook.name).write_text(text, encoding="utf-8")


def _write_model_cards() -> None:
    """One page per bundled checkpoint, from the card that ships with it."""
    from cfm import hub

    target = HERE / "model_cards" / "generated"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    checkpoints = hub.list_checkpoints()
    for name in checkpoints.index[checkpoints["origin"] == "bundled"]:
        (target / f"{name}.md").write_text(hub.model_card(name), encoding="utf-8")


_copy_tutorials()
_write_model_cards()


def _skip_foreign(
    app: object, what: str, name: str, member: object, skip: bool, options: object
) -> bool | None:
    """Leave out methods that base classes of other packages put into our classes."""
    module = getattr(getattr(member, "fget", member), "__module__", None) or "cfm"
    return True if what == "class" and not module.startswith("cfm") else None


def _share_cores(app: Sphinx, config: object) -> None:
    """With ``-j`` notebooks run side by side: the kernels divide the cores between them."""
    if app.parallel > 1:
        threads = max(1, (os.cpu_count() or 1) // app.parallel)
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(name, str(threads))


def _spread_notebooks(app: Sphinx, env: object, docnames: list[str]) -> None:
    """Spread the notebooks over the pages, which ``-j`` reads in blocks of neighbours."""
    notebooks = [name for name in docnames if name.startswith("tutorials/notebooks/")]
    others = [name for name in docnames if name not in notebooks]
    for number, name in enumerate(notebooks):
        others.insert(number * len(docnames) // len(notebooks), name)
    docnames[:] = others


def setup(app: Sphinx) -> None:
    """Connect the hooks of this file."""
    app.connect("autodoc-skip-member", _skip_foreign)
    app.connect("config-inited", _share_cores)
    app.connect("env-before-read-docs", _spread_notebooks)
