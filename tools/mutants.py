"""The small faults that `mutate.py` plants: one change of one expression or statement, at a known place of a file.

The rest of the file stays as it is, character by character, so that line numbers in tracebacks hold.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["OPERATORS", "Mutant", "mutants_of"]

OPERATORS = {
    "comparison": "< for <=, == for !=, `in` for `not in`, ...",
    "arithmetic": "+ for -, * for /, // for *, ...",
    "boolean": "`and` for `or`, a condition for its opposite",
    "constant": "a number + 1, or twice as large if it is 1,000 or more; True for False",
    "return": "None in place of what a function returns",
    "statement": "a call, an assignment to an attribute or an item, or a raise is left out",
    "keyword": "a keyword argument of a call is left out",
    "element": "an element of a tuple or a list is left out",
}
_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
# Names of what is printed in a help or lists what a module offers.
_TEXTS = ("__", "EXAMPLES", "SUMMARY", "help", "metavar", "description", "epilog")


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: The file, relative to the root of the tree.
        line: Where the change begins, from 1.
        operator: Of `OPERATORS`.
        before: The text that is replaced.
        after: What takes its place.
        start: Its first character in the file.
    """

    path: str
    line: int
    operator: str
    before: str
    after: str
    start: int

    @property
    def id(self) -> str:
        """A name that tells it from all others of the tree."""
        return f"{self.path}:{self.line}:{self.start}:{self.operator}:{self.after}"

    def apply(self, source: str) -> str:
        """The text of the file with the change in it."""
        return source[: self.start] + self.after + source[self.start + len(self.before) :]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines.

    Left out is what no test could or should notice: annotations, docstrings, texts, what stands in a raise (but for
    the raise itself), `__all__`, and what only type checkers read.

    Args:
        path: Under which they are reported.
        source: Text of the file.
    """
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines()

    def place(line: int, column: int) -> int:  # ast counts columns in bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node, operator, after in _changes(ast.parse(source)):
        start, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        before = source[start:end]
        if after != before:
            found.append(Mutant(path, node.lineno, operator, before, after, start))
    return sorted(found, key=lambda mutant: (mutant.start, mutant.operator, mutant.after))


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    for node in _visited(tree):
        for operator, changed in _changed(node):
            yield node, operator, changed if isinstance(changed, str) else _text(changed, node)


def _text(changed: ast.AST, original: ast.AST) -> str:
    """Source on one line; brackets keep an expression together wherever it stands."""
    text = ast.unparse(changed)
    loose = (ast.BinOp, ast.BoolOp, ast.Compare, ast.UnaryOp, ast.IfExp)
    return f"({text})" if isinstance(changed, loose) and isinstance(original, ast.expr) else text


def _visited(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes to change, from the outside in."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith(_TEXTS):
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "format_spec", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.Subscript) and field == "slice" and isinstance(child, ast.Tuple):
                for part in child.elts:  # one axis fewer is another shape, and `a:b` stands in no other place
                    yield from _visited(part)
            elif isinstance(child, ast.AST):
                yield from _visited(child)


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        yield "comparison", _with(node, ops=[_COMPARISONS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_text(node):
        yield "arithmetic", _with(node, op=_ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield "boolean", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.IfExp):
        yield "boolean", _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", repr(node.value * 2 if abs(node.value) >= 1000 else node.value + 1)
    elif isinstance(node, ast.Call):
        for number, keyword in enumerate(node.keywords):
            checked = keyword.arg == "strict" and ast.unparse(node.func) == "zip"  # the same where the lengths agree
            if keyword.arg and keyword.arg not in _TEXTS and not checked and len(node.keywords) + len(node.args) > 1:
                yield "keyword", _with(node, keywords=node.keywords[:number] + node.keywords[number + 1 :])
    elif isinstance(node, ast.Tuple | ast.List) and isinstance(node.ctx, ast.Load) and len(node.elts) > 1:
        for number in range(len(node.elts)):
            shorter = _with(node, elts=node.elts[:number] + node.elts[number + 1 :])
            yield "element", f"({ast.unparse(shorter)[1:-1]})" if isinstance(node, ast.Tuple) else shorter
    yield from _changed_statement(node)


def _changed_statement(node: ast.AST) -> Iterator[tuple[str, ast.AST | str]]:
    if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
        yield "return", "return None"
    elif isinstance(node, ast.Raise | ast.AugAssign) or _is_call(node) or _is_assignment_to_part(node):
        yield "statement", "pass"


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def _is_assignment_to_part(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_text(node: ast.BinOp) -> bool:
    """Whether an operation puts texts together."""
    parts = (node.left, node.right)
    return any(isinstance(part, ast.JoinedStr) for part in parts) or any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) for part in parts
    )
