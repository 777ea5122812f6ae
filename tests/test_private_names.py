"""The package uses no private names of other packages, but for those that have a reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import LightningModule
from scvi.model.base import BaseModelClass

import cfm

FOLDER = Path(cfm.__file__).parent
#: By file, for all files below a folder: names, and why there is no public way.
ALLOWED = {
    # documented by Python
    "_cli/_ending.py": {"_exit"},
    "_adata.py": {"_getframe"},
    # scvi-tools tells authors of models to call the first in setup_anndata, and names the second in
    # register_manager; without the third get_anndata_manager does not find data attached later
    "models/_base.py": {"_get_most_recent_anndata_manager", "_register_manager_for_instance"},
    # the last is a method of named tuples, documented by Python
    "models": {"_get_setup_method_args", "_replace"},
    # oneDNN for training: twice as fast as MKL on AMD processors;
    # torch has no public counter of changes in place
    "nn/_kernels.py": {"_linear_pointwise", "_version"},
    # what a view is of, to read its rows without reading all
    "data/_matrix.py": {"_adata_ref", "_oidx", "_vidx"},
    # an error that anndata raises of damaged files
    "data/_disk_parts.py": {"anndata._io.specs.registry"},
    # anndata has no public way to add a kind of matrix
    "data/_row_stack.py": {
        *("anndata._core.file_backing", "anndata._core.index", "anndata._core.views"),
        *("anndata._io.specs.registry", "_REGISTRY", "_subset"),
    },
}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _trees() -> dict[str, ast.Module]:
    paths = sorted(FOLDER.rglob("*.py"))
    return {str(path.relative_to(FOLDER)): ast.parse(path.read_text("utf-8")) for path in paths}


def _own(trees: dict[str, ast.Module]) -> set[str]:
    """Return what is defined here: modules, functions, classes, variables, attributes of self."""
    out = {part for path in trees for part in Path(path).with_suffix("").parts}
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            out.add(node.attr)
    return out


def _foreign(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Return the private names of others that a file uses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (n for n in names if _is_foreign(n) and any(map(_private, n.split("."))))
        elif isinstance(node, ast.ImportFrom) and _is_foreign(node.module or ""):
            if any(map(_private, str(node.module).split("."))):
                yield str(node.module)
            yield from (alias.name for alias in node.names if _private(alias.name))
        elif isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in own:
            yield node.attr


def _is_foreign(module: str) -> bool:
    return module.split(".")[0] != "cfm"


def _allowed(path: str) -> set[str]:
    return set().union(*(ALLOWED.get(str(p), set()) for p in (Path(path), *Path(path).parents)))


def test_no_private_names_of_other_packages() -> None:
    trees = _trees()
    own = _own(trees) - {*dir(BaseModelClass), *dir(LightningModule)}
    own -= {name for names in ALLOWED.values() for name in names}
    found = {path: set(_foreign(tree, own)) for path, tree in trees.items()}
    assert {path: names - _allowed(path) for path, names in found.items() if names} == {
        path: set() for path, names in found.items() if names
    }
    unused = {
        place: names
        - set().union(*(n for p, n in found.items() if f"{p}/".startswith(f"{place}/")))
        for place, names in ALLOWED.items()
    }
    assert not any(unused.values()), unused


def test_private_names_are_found() -> None:
    text = "from torch._C import a\nimport scvi._x\nfrom scipy import _y\nz._w\nself._own\n"
    found = set(_foreign(ast.parse(text), {"_own"}))
    assert found == {"torch._C", "scvi._x", "_y", "_w"}
