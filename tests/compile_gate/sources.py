"""The source that a kernel's machine code is made of: read, not run, which would need Triton."""

import ast
import importlib.util
from pathlib import Path
from typing import NamedTuple


class Module(NamedTuple):
    """A module's definitions, functions and constants: their text and the names in them; and where names come from."""

    definitions: dict[str, tuple[str, set[str]]]
    imports: dict[str, tuple[Path, str]]


def source_of(kernel: str) -> bytes:
    """Of "module:function": that definition and all that it names, in its module or imported relatively, and so on.

    Decorators and comments are part of a definition. What is imported otherwise is not the package's own.
    """
    module, _, name = kernel.partition(":")
    waiting, found = [(Path(importlib.util.find_spec(module).origin), name)], {}
    while waiting:
        path, name = waiting.pop()
        definitions, imports = _parsed(path)
        if (path, name) in found or name not in definitions:
            continue
        found[path, name], named = definitions[name]
        waiting += [imports.get(other, (path, other)) for other in named]
    return "".join(f"{path.name} {name}\n{text}\n" for (path, name), text in sorted(found.items())).encode()


def _parsed(path: Path) -> Module:
    text = path.read_text()
    lines, definitions, imports = text.splitlines(), {}, {}
    tree = ast.parse(text)
    for node in tree.body:
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if isinstance(node, ast.FunctionDef):
            first = min(n.lineno for n in [node, *node.decorator_list])
            definitions[node.name] = "\n".join(lines[first - 1 : node.end_lineno]), names
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                definitions[target.id] = "\n".join(lines[node.lineno - 1 : node.end_lineno]), names
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module is None:
                raise ValueError(f"{path.name}: import the names of a module, not the module: {ast.unparse(node)}")
            source = path.parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return Module(definitions, imports)
