"""Whether a text can be handed to a scorer that evaluates it as Python or SymPy: plain values and arithmetic only."""

from __future__ import annotations

import ast

_FUNCTIONS = frozenset(["sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "exp", "log", "ln", "sqrt"])
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd)
_PLAIN = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.Name, ast.Call, ast.Load)
_LONGEST = 4000
_LARGEST_EXPONENT = 20


def harmless(text: str) -> bool:
    """True for values, lists and arithmetic with small exponents, and for text that no parser could make a call of."""
    if len(text) > _LONGEST:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return not any(mark in text for mark in ("(", "!", "**", "__", "lambda"))
    return all(_plain(node) for node in ast.walk(tree))


def _plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        nested = any(isinstance(inner, ast.Call) for argument in node.args for inner in ast.walk(argument))
        return named and not nested and not node.keywords
    if isinstance(node, ast.BinOp):
        return _small(node)
    return isinstance(node, (*_PLAIN, *_OPERATORS))


def _small(node: ast.BinOp) -> bool:
    """No towers of powers, and no sequence repeated a million times."""
    if isinstance(node.op, ast.Pow):
        exponent = node.right.operand if isinstance(node.right, ast.UnaryOp) else node.right
        towers = any(isinstance(inner, ast.Pow) for inner in ast.walk(node.left))
        if towers or not isinstance(exponent, ast.Constant):
            return False
        return isinstance(exponent.value, int | float) and abs(exponent.value) <= _LARGEST_EXPONENT
    if isinstance(node.op, ast.Mult):
        return not any(
            isinstance(side, ast.List | ast.Tuple) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
    return True
