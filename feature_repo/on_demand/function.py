"""Functions of a ``features.py`` as text, so that a release can carry and run them by itself."""

from __future__ import annotations
import __future__

import ast
import builtins
import importlib
import symtable
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any


@dataclass(frozen=True)
class FunctionText:
    """A function as text.

    Attributes:
        name: the function's name.
        source: its definition without decorators.
        imports: names that it uses, each with where it is from: ``module`` or ``module:object``. A
            name with a dot is a module that is only imported.

    """

    name: str
    source: str
    imports: tuple[tuple[str, str], ...] = ()

    def load(self) -> Callable[[Any], Any]:
        """Return the function, which knows no other names than its imports and built-ins.

        Raises:
            ImportError: this machine lacks a module.
            AttributeError: a module lacks an object.

        """
        scope: dict[str, Any] = {"__name__": "__main__"}  # so that dill keeps it by value
        imported = [(name, _imported(origin)) for name, origin in self.imports]
        scope |= {name: value for name, value in imported if "." not in name}
        flags = __future__.annotations.compiler_flag
        exec(compile(self.source, f"<{self.name}>", "exec", flags), scope)  # noqa: S102
        function: Callable[[Any], Any] = scope[self.name]
        return function


def function_text(function: FunctionType) -> FunctionText:
    """Return a function as text.

    Raises:
        ValueError: it needs something that the text does not have.

    """
    code = function.__code__
    if code.co_freevars:
        raise ValueError(
            f"its function reads {list(code.co_freevars)} of the function around it: "
            "define it at the top of the file, and write the values into it"
        )
    text = Path(code.co_filename).read_text(encoding="utf-8")
    file = ast.parse(text)
    node = _definition(function, file)
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    origins = _imports_of(file)
    imports = []
    for name in sorted(_global_names(node) - {node.name}):
        if name in function.__globals__:
            value = function.__globals__[name]
            imports.append((name, _origin(name, value, origins.get(name))))
            if isinstance(value, ModuleType):
                imports += [(part, part) for part in sorted(_submodules(node, name, value))]
        elif not hasattr(builtins, name):
            raise ValueError(f"its function uses '{name}', which is not defined")
    return FunctionText(node.name, textwrap.dedent("\n".join(lines)) + "\n", tuple(imports))


def _definition(function: FunctionType, file: ast.Module) -> ast.FunctionDef:
    """Return where a function is defined in its file."""
    code = function.__code__
    for node in ast.walk(file):
        if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if first == code.co_firstlineno:
            return node
    raise ValueError("its function is defined with 'def' in features.py")


def _imports_of(file: ast.Module) -> dict[str, str]:
    """Return the names that a file imports from modules, as ``module:object``."""
    return {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in file.body
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }


def _submodules(node: ast.FunctionDef, name: str, module: ModuleType) -> set[str]:
    """Return the modules within one that a function uses through its name, as in ``a.b.f``."""
    found = set()
    for part in ast.walk(node):
        path = []
        while isinstance(part, ast.Attribute):
            path.append(part.attr)
            part = part.value  # noqa: PLW2901
        if isinstance(part, ast.Name) and part.id == name:
            inner = module.__name__
            for attribute in reversed(path):
                inner = f"{inner}.{attribute}"
                if inner not in sys.modules:
                    break
                found.add(inner)
    return found


def _global_names(node: ast.FunctionDef) -> set[str]:
    """Return the names that a function reads of its module, those of annotations left out."""
    bare = _WithoutAnnotations().visit(ast.parse(ast.unparse(node)).body[0])
    bare.decorator_list = []
    names: set[str] = set()
    tables = [symtable.symtable(ast.unparse(bare), "features.py", "exec")]
    while tables:
        table = tables.pop()
        is_module = table.get_type() == "module"
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (is_module or symbol.is_global())
        }
        tables += table.get_children()
    return names


class _WithoutAnnotations(ast.NodeTransformer):
    """Removes annotations, which are not evaluated when the text is loaded."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(value=0)
        return self.generic_visit(node)


def _origin(name: str, value: Any, stated: str | None) -> str:
    """Return from where a name of the module can be imported again.

    Args:
        name: the name.
        value: what it is.
        stated: from where the file imports it, if it does.

    Raises:
        ValueError: from nowhere: it is defined in the file.

    """
    if isinstance(value, ModuleType):
        return value.__name__
    try:
        if stated and _imported(stated) is value:
            return stated
    except (ImportError, AttributeError):
        pass
    raise ValueError(
        f"its function reads '{name}' of the file, which a release does not have: "
        "write it into the function"
    )


def _imported(origin: str) -> Any:
    """Return a module, or an object of it."""
    module, _, name = origin.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found
