"""Sphinx configuration. Builds offline: no page is fetched unless it is asked for.

``CFM_DOCS_EXECUTE=1`` runs the notebooks anew instead of showing their committed outputs;
``CFM_DOCS_INTERSPHINX=1`` links to the documentation of other packages (needs a network).
"""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "cfm"
author = "cfm developers"
copyright = "2026, cfm developers"
release = version = installed_version("cfm-tools")

extensions = [
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
nb_execution_mode = "force" if os.environ.get("CFM_DOCS_EXECUTE") else "off"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True


def _copy_tutorials() -> None:
    """Notebooks live beside the code in tutorials/; Sphinx wants them below docs/."""
    target = HERE / "tutorials" / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for notebook in sorted((ROOT / "tutorials").glob("*.ipynb")):
        shutil.copy(notebook, target)


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
    module = getattr(member, "__module__", None) or "cfm"
    return True if what == "class" and not module.startswith("cfm") else None


def setup(app: Sphinx) -> None:
    """Connect the hooks of this file."""
    app.connect("autodoc-skip-member", _skip_foreign)
