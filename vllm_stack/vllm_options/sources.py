"""The options of `vllm serve`, read from vLLM's sources without running them.

They are literals and annotated fields in a few files. These are read with `ast`, from
`ServeSubcommand.subparser_init` (vllm/entrypoints/cli/serve.py) along every call that hands the
parser on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


def read_sources(package: Path) -> frozenset[str] | None:
    """Read the options of `vllm serve` from the sources of the `vllm` package, without running them.

    None if they cannot be read or are laid out differently. An option whose kind remains unclear
    is taken to have a `--no-` form: to refuse a good option is worse than to pass on a bad one.
    """
    try:
        sources = _Sources(package.parent)
        command = sources.find("vllm.entrypoints.cli.serve", "ServeSubcommand")
        method = sources.method(command, "subparser_init") if command else None
        if method is None:
            return None
        # argparse adds these two itself.
        return frozenset({"-h", "--help", *sources.options(method)})
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class _Import:
    """A name that a module has from another one."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class _Named:
    """What a name stands for, and the module where that is written."""

    module: str
    node: ast.AST


@dataclass(frozen=True, slots=True)
class _Method:
    """A function, and the class it was called on, which is its `cls`."""

    function: _Named
    owner: _Named | None = None


@dataclass(frozen=True, slots=True)
class _Kwargs:
    """The value of `get_kwargs(owner)`, or of one field of it."""

    owner: _Named
    field: str | None = None


@dataclass(slots=True)
class _Sources:
    """The modules below one directory, each parsed when something is looked up in it."""

    root: Path
    _modules: dict[str, dict[str, ast.AST | _Import]] = field(default_factory=dict)

    def find(self, module: str, name: str) -> _Named | None:
        """Follow a name to its definition; None for what is not below the directory."""
        seen: set[tuple[str, str]] = set()
        while (module, name) not in seen:
            seen.add((module, name))
            found = self._names(module).get(name)
            if not isinstance(found, _Import):
                return _Named(module, found) if found is not None else None
            module, name = found.module, found.name
        return None

    def method(self, owner: _Named, name: str) -> _Method | None:
        """Find a method in a class, or in the classes it is derived from."""
        for part in self._lineage(owner):
            for node in _body(part):
                if isinstance(node, ast.FunctionDef) and node.name == name:
                    return _Method(_Named(part.module, node), owner)
        return None

    def options(self, method: _Method, seen: frozenset[ast.AST] = frozenset()) -> Iterator[str]:
        """Give the options that a function adds to a parser, and those of the functions it hands one to."""
        module, function = method.function.module, method.function.node
        if function in seen:
            return
        variables = self._kwargs_variables(method)
        for call in ast.walk(function):
            if not isinstance(call, ast.Call):
                continue
            if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
                yield from self._added(call, variables)
            elif any(isinstance(word, ast.Name) and word.id.endswith("parser") for word in call.args):
                called = self._called(module, call.func)
                if called is not None:
                    yield from self.options(called, seen | {function})

    def _called(self, module: str, function: ast.expr) -> _Method | None:
        if isinstance(function, ast.Name):
            found = self.find(module, function.id)
            return _Method(found) if found and isinstance(found.node, ast.FunctionDef) else None
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            owner = self.find(module, function.value.id)
            return self.method(owner, function.attr) if owner else None
        return None

    def _added(self, call: ast.Call, variables: Mapping[str, _Kwargs]) -> Iterator[str]:
        """Give the options of one `add_argument`."""
        names = [text for word in call.args if (text := _text(word)) and text.startswith("-")]
        if _is_boolean_action(call) or any(self._is_boolean(kwargs, variables) for kwargs in _spread(call)):
            names += [_negated(name) for name in names if name.startswith("--")]
        yield from names
        if any(isinstance(word, ast.JoinedStr) for word in call.args):
            # f"--{key.replace('_', '-')}" in a loop over all fields of a class.
            for owner in {kwargs.owner for kwargs in variables.values() if kwargs.field is None}:
                yield from self._field_options(owner)

    def _field_options(self, owner: _Named) -> Iterator[str]:
        for name in self._fields(owner):
            option = f"--{name.replace('_', '-')}"
            yield option
            if self._is_boolean_field(_Kwargs(owner, name)):
                yield _negated(option)
        for part in self._lineage(owner):
            yield from _extra_flags(part.node)

    def _is_boolean(self, kwargs: ast.expr, variables: Mapping[str, _Kwargs]) -> bool:
        meant = self._kwargs(kwargs, variables)
        return meant is None or self._is_boolean_field(meant)

    def _is_boolean_field(self, kwargs: _Kwargs) -> bool:
        """Tell whether a field has a `--no-` form (vllm/engine/arg_utils.py, _compute_kwargs)."""
        annotation = self._fields(kwargs.owner).get(kwargs.field or "")
        if annotation is None:
            return True
        types = self._types(annotation.module, annotation.node)
        return "bool" in types and types != {"bool", "str", "None"}

    def _types(self, module: str, annotation: ast.AST, depth: int = 0) -> set[str]:
        """Take a union apart, through Annotated and aliases (vllm/engine/arg_utils.py, get_type_hints)."""
        match annotation:
            case ast.Constant(value=None):
                return {"None"}
            case ast.Constant(value=str() as text):
                return self._types(module, ast.parse(text, mode="eval").body, depth)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return self._types(module, left, depth) | self._types(module, right, depth)
            case ast.Subscript(value=generic, slice=inner):
                return self._generic_types(module, _last_name(generic), inner, depth)
            case ast.Name(id=name):
                alias = self.find(module, name) if depth < 8 else None
                value = getattr(alias.node, "value", None) if alias else None
                if alias is not None and isinstance(value, ast.expr):
                    return self._types(alias.module, value, depth + 1)
                return {name}
        return {_last_name(annotation)}

    def _generic_types(self, module: str, generic: str, inner: ast.expr, depth: int) -> set[str]:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        if generic in ("Annotated", "SkipValidation"):
            return self._types(module, parts[0], depth)
        if generic in ("Union", "Optional"):
            types = {name for part in parts for name in self._types(module, part, depth)}
            return types | {"None"} if generic == "Optional" else types
        return {generic}

    def _kwargs_variables(self, method: _Method) -> dict[str, _Kwargs]:
        """Find which variables of a function hold `get_kwargs` of which class, or of which field."""
        variables: dict[str, _Kwargs] = {}
        for node in ast.walk(method.function.node):
            if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name):
                meant = self._kwargs(node.value, variables) or self._got_kwargs(node.value, method)
                if meant is not None:
                    variables.setdefault(target.id, meant)
        return variables

    def _got_kwargs(self, value: ast.expr, method: _Method) -> _Kwargs | None:
        match value:
            case ast.Subscript(value=inner, slice=ast.Constant(value=str() as name)):
                whole = self._got_kwargs(inner, method)
                return _Kwargs(whole.owner, name) if whole and whole.field is None else None
            case ast.Call(func=function, args=[ast.Name(id=name)]) if _last_name(function) == "get_kwargs":
                owner = method.owner if name == "cls" else self.find(method.function.module, name)
                return _Kwargs(owner) if owner and isinstance(owner.node, ast.ClassDef) else None
        return None

    def _kwargs(self, value: ast.expr, variables: Mapping[str, _Kwargs]) -> _Kwargs | None:
        """Follow `kwargs`, `kwargs["field"]` and `{**kwargs["field"], ...}` to the field they hold."""
        match value:
            case ast.Name(id=name):
                return variables.get(name)
            case ast.Subscript(value=inner, slice=ast.Constant(value=str() as name)):
                whole = self._kwargs(inner, variables)
                return _Kwargs(whole.owner, name) if whole and whole.field is None else None
            case ast.Dict(keys=[None, *_], values=[inner, *_]):
                return self._kwargs(inner, variables)
        return None

    def _fields(self, owner: _Named) -> dict[str, _Named]:
        """Give the annotated fields of a dataclass, those it is derived from included."""
        fields: dict[str, _Named] = {}
        for part in self._lineage(owner):
            for node in _body(part):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    fields.setdefault(node.target.id, _Named(part.module, node.annotation))
        return {name: value for name, value in fields.items() if not _is_class_variable(value.node)}

    def _lineage(self, owner: _Named, depth: int = 0) -> Iterator[_Named]:
        """Give a class and the classes it is derived from, the nearest first."""
        if not isinstance(owner.node, ast.ClassDef) or depth > 8:
            return
        yield owner
        for base in owner.node.bases:
            found = self.find(owner.module, base.id) if isinstance(base, ast.Name) else None
            if found is not None:
                yield from self._lineage(found, depth + 1)

    def _names(self, module: str) -> dict[str, ast.AST | _Import]:
        if module not in self._modules:
            path = self.root.joinpath(*module.split("."))
            is_package = (path / "__init__.py").is_file()
            file = path / "__init__.py" if is_package else path.with_suffix(".py")
            try:
                body = ast.parse(file.read_bytes()).body
            except FileNotFoundError:
                body = []
            package = module if is_package else module.rpartition(".")[0]
            names: dict[str, ast.AST | _Import] = {}
            for name, meaning in _bindings(body, package):
                names.setdefault(name, meaning)
            self._modules[module] = names
        return self._modules[module]


def _bindings(body: Iterable[ast.stmt], package: str) -> Iterator[tuple[str, ast.AST | _Import]]:
    """Give the names that the statements of a module define or import, under conditions too."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.ImportFrom(module=module, names=names, level=level):
                parents = package.split(".")
                origin = parents[: len(parents) - level + 1] if level else []
                origin += module.split(".") if module else []
                for alias in names:
                    yield alias.asname or alias.name, _Import(".".join(origin), alias.name)
            case ast.If(body=then, orelse=otherwise) | ast.Try(body=then, orelse=otherwise):
                yield from _bindings([*then, *otherwise], package)


def _body(named: _Named) -> list[ast.stmt]:
    return named.node.body if isinstance(named.node, ast.ClassDef) else []


def _text(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _last_name(node: ast.AST) -> str:
    """Give `c` for `a.b.c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _is_class_variable(annotation: ast.AST) -> bool:
    return isinstance(annotation, ast.Subscript) and _last_name(annotation.value) == "ClassVar"


def _negated(option: str) -> str:
    return f"--no-{option[2:]}"


def _is_boolean_action(call: ast.Call) -> bool:
    actions = [word.value for word in call.keywords if word.arg == "action"]
    return any(_last_name(action) == "BooleanOptionalAction" for action in actions)


def _spread(call: ast.Call) -> list[ast.expr]:
    """Give what stands behind `**` in a call that names no action itself."""
    if any(word.arg == "action" for word in call.keywords):
        return []
    return [word.value for word in call.keywords if word.arg is None]


def _extra_flags(node: ast.AST) -> Iterator[str]:
    """Give the values of `kwargs[name]["flags"] = ["-i"]` (BaseFrontendArgs.add_cli_args takes them)."""
    for part in ast.walk(node):
        match part:
            case ast.Assign(
                targets=[ast.Subscript(slice=ast.Constant(value="flags"))], value=ast.List(elts=flags)
            ):
                yield from (text for flag in flags if (text := _text(flag)))
