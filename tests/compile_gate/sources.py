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

    Raises:
        ValueError: a module has something at its top that would not be seen, or has not what is asked of it.
    """
    module, _, name = kernel.partition(":")
    waiting, found = [(Path(importlib.util.find_spec(module).origin), name)], {}
    while waiting:
        path, name = waiting.pop()
        if (path, name) in found:
            continue
        definitions, imports = _parsed(path)
        if name in definitions:
            found[path, name], named = definitions[name]
            waiting += [imports.get(n, (path, n)) for n in named if n in definitions or n in imports]
        elif name in imports:
            waiting.append(imports[name])
        else:
            raise ValueError(f"{path.name} has no {name}")
    return "".join(f"{path.name} {name}\n{text}\n" for (path, name), text in sorted(found.items())).encode()


def _parsed(path: Path) -> Module:
    text = path.read_text()
    lines, definitions, imports = text.splitlines(), {}, {}
    tree = ast.parse(text)
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                if name in definitions:
                    raise ValueError(f"{path.name}: {name} is defined twice")
                first = min(n.lineno for n in [node, *getattr(node, "decorator_list", [])])
                named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                definitions[name] = "\n".join(lines[first - 1 : node.end_lineno]), named
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise ValueError(f"{path.name}: neither function, constant nor import: {ast.unparse(node)}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module is None or node.names[0].name == "*":
                raise ValueError(f"{path.name}: import the names of a module, not the module: {ast.unparse(node)}")
            source = path.parents[node.level - 1] / f"{node.module.replace('.', '/')}.py"
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
    return Module(definitions, imports)
