"""Functions of a ``features.py`` as text, so that a release can carry and run them by itself."""

from __future__ import annotations
import __future__

import ast
import builtins
import importlib
import symtable
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
        imports: names that it uses, each with where it is from: ``module`` or ``module:object``.

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
        scope |= {name: _imported(origin) for name, origin in self.imports}
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
    node, source = _definition(function)
    imports = []
    for name in sorted(_global_names(node) - {node.name}):
        if name in function.__globals__:
            imports.append((name, _origin(name, function.__globals__[name])))
        elif not hasattr(builtins, name):
            raise ValueError(f"its function uses '{name}', which is not defined")
    return FunctionText(node.name, source, tuple(imports))


def _definition(function: FunctionType) -> tuple[ast.FunctionDef, str]:
    """Return where a function is defined, and that text without decorators."""
    code = function.__code__
    text = Path(code.co_filename).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if first == code.co_firstlineno:
            lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
            return node, textwrap.dedent("\n".join(lines)) + "\n"
    raise ValueError("its function is defined with 'def' in features.py")


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


def _origin(name: str, value: Any) -> str:
    """Return from where a name of the module can be imported again.

    Raises:
        ValueError: from nowhere: it is defined in the file.

    """
    if isinstance(value, ModuleType):
        return value.__name__
    origin = f"{getattr(value, '__module__', None)}:{getattr(value, '__name__', None)}"
    try:
        if _imported(origin) is value:
            return origin
    except (ImportError, AttributeError, ValueError):
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
