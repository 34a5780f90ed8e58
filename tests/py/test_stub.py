"""_cgxffcv.pyi against the module: the same names, the same members, the same parameters."""

import ast
import inspect
from pathlib import Path

import _cgxffcv
import pytest

STUB = ast.parse((Path(__file__).resolve().parents[2] / "_cgxffcv.pyi").read_text())
IN_STUB_ONLY = {"Path", "F32", "F64", "I64", "U8", "Array", "Members", "ThreeFloats", "Skips"}
SPECIAL = {"__new__", "__enter__", "__exit__"}


def public(names):
    return {name for name in names if not name.startswith("_")}


def definitions(body):
    """Name to node: functions, classes, annotated names; a property and its setter are one."""
    out = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            out.setdefault(node.name, node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out[node.target.id] = node
    return out


TOP = definitions(STUB.body)
CLASSES = {name: node for name, node in TOP.items() if isinstance(node, ast.ClassDef)}


def parameters(node):
    """(name, kind, has a default) of a function of the stub, without self."""
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [False] * (len(positional) - len(a.defaults)) + [True] * len(a.defaults)
    kinds = ["positional only"] * len(a.posonlyargs) + ["any"] * len(a.args)
    out = list(zip([p.arg for p in positional], kinds, defaults, strict=True))
    out += [(p.arg, "keyword", d is not None) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    out += [(p.arg, kind, False) for p, kind in ((a.vararg, "positions"), (a.kwarg, "keywords")) if p is not None]
    return [p for p in out if p[0] not in ("self", "cls")]


def signature(thing):
    """The same of a function of the module, by the first line of its docstring."""
    assert thing.__text_signature__ is not None, "its docstring does not begin with NAME(PARAMETERS), --, an empty line"
    found = inspect.signature(thing).parameters.values()
    kinds = {
        inspect.Parameter.POSITIONAL_ONLY: "positional only",
        inspect.Parameter.POSITIONAL_OR_KEYWORD: "any",
        inspect.Parameter.KEYWORD_ONLY: "keyword",
        inspect.Parameter.VAR_POSITIONAL: "positions",
        inspect.Parameter.VAR_KEYWORD: "keywords",
    }
    return [(p.name, kinds[p.kind], p.default is not p.empty) for p in found if p.name != "self"]


def test_the_same_names():
    assert public(dir(_cgxffcv)) == public(TOP) - IN_STUB_ONLY


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_members(name):
    kind, node = getattr(_cgxffcv, name), CLASSES[name]
    assert [base.__name__ for base in kind.__bases__] == [ast.unparse(base) for base in node.bases] or not node.bases
    if issubclass(kind, Exception):
        return  # their attributes belong to the instances
    own = {member for member in vars(kind) if not member.startswith("_")}
    assert own == public(definitions(node.body))


def functions():
    for name, node in TOP.items():
        if isinstance(node, ast.FunctionDef):
            yield pytest.param(getattr(_cgxffcv, name), node, id=name)
    for name, cls in CLASSES.items():
        for member, node in definitions(cls.body).items():
            plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
            if plain and (not member.startswith("_") or member in SPECIAL - {"__new__"}):
                yield pytest.param(getattr(getattr(_cgxffcv, name), member), node, id=f"{name}.{member}")


@pytest.mark.parametrize("thing, node", list(functions()))
def test_the_same_parameters(thing, node):
    said = signature(thing)
    in_stub = parameters(node)
    if [p[0] for p in said] != [p[0] for p in in_stub] or [p[2] for p in said] != [p[2] for p in in_stub]:
        pytest.fail(f"the module says {said}, the stub {in_stub}")


def test_properties_are_properties():
    for name, cls in CLASSES.items():
        for member, node in definitions(cls.body).items():
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list
            ):
                assert not callable(vars(getattr(_cgxffcv, name))[member]), f"{name}.{member}"
