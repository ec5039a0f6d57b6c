"""A lineage as text: an indented tree for people, a Mermaid flowchart for pages."""

from __future__ import annotations

from collections.abc import Iterator

from strop.flows import output
from strop.storage.nodes import Node

NAMED = frozenset({"policy", "run", "recipe", "seed", "code", "scorer"})
"""Kinds that go by a name: their number is in `--format json`."""
BRIEF: dict[str, tuple[str, ...]] = {
    "rollout": ("round", "seed"),
    "example": ("round",),
    "problem": ("round", "category", "origin"),
    "policy": ("objective", "examples"),
    "run": ("recipe", "seed", "strop_version"),
    "stage_run": ("seed",),
    "metric": ("n",),
}
"""Facts told of a row within a tree; of the row asked for all are."""


def tree(title: str, node: Node) -> str:
    """What stands below a node, one row a line, under a title."""
    return "\n".join([title, *(list(_lines(node, "")) or ["└─ nothing"])])


def head(node: Node) -> str:
    """The row asked for, with all its facts."""
    width = max(map(len, node.facts), default=0)
    facts = [f"  {name:<{width}}  {output.cell(value)}" for name, value in node.facts.items()]
    return "\n".join([f"{_name(node)}", *facts])


def _lines(node: Node, indent: str) -> Iterator[str]:
    for i, child in enumerate(node.children):
        last = i == len(node.children) - 1 and not node.more
        relation = f"{child.relation} " if node.id else ""  # members of a group share the group's
        yield f"{indent}{'└─ ' if last else '├─ '}{relation}{_name(child)}{_brief(child)}"
        yield from _lines(child, indent + ("   " if last else "│  "))
    if node.more:
        yield f"{indent}└─ ... and {node.more:,} more"


def _name(node: Node) -> str:
    if not node.id:
        return node.label
    label = node.label if len(node.label) <= 2 * output.CELL else node.label[: 2 * output.CELL - 1] + "…"
    label = label.replace("\n", "⏎")
    return f"{node.kind.replace('_', ' ')} {label}" + ("" if node.kind in NAMED else f"  #{node.id}")


def _brief(node: Node) -> str:
    if node.above:
        return "  (above)"
    told = [f"{name} {output.cell(node.facts[name])}" for name in BRIEF.get(node.kind, ()) if name in node.facts]
    return f"  ({', '.join(told)})" if told else ""


def mermaid(up: Node | None, down: Node | None) -> str:
    """A flowchart from origins on the left to outcomes on the right; a row is one box however often it is met."""
    boxes: dict[tuple[str, str], str] = {}
    lines = ["flowchart LR"]
    edges: dict[str, None] = {}

    def box(node: Node, inside: str) -> str:
        key = (node.kind, node.id or inside + node.relation)
        if key not in boxes:
            boxes[key] = f"n{len(boxes)}"
            shape = ("([", "])") if not node.id else ("[", "]")
            lines.append(f"  {boxes[key]}{shape[0]}{_escaped(_box(node))}{shape[1]}")
        return boxes[key]

    def draw(node: Node, forward: bool, path: str) -> None:
        here = box(node, path)
        for child in node.children:
            there = box(child, f"{path}/{here}")
            start, end, said = (here, there, child.relation) if forward else (there, here, child.reverse)
            told = f"|{_escaped(said)}| " if node.id else " "
            edges[f"  {start} -->{told}{end}"] = None
            draw(child, forward, f"{path}/{here}")

    if up is not None:
        draw(up, False, "")
    if down is not None:
        draw(down, True, "")
    root = boxes[next(iter(boxes))]
    return "\n".join([*lines, *edges, f"  style {root} stroke-width:3px"])


def _box(node: Node) -> str:
    if not node.id:
        return node.label + (f", {node.more:,} not shown" if node.more else "")
    return _name(node)


def _escaped(text: str) -> str:
    """Text in quotation marks, with everything that Mermaid or HTML could take for its own as a character code."""
    plain = set(" .,:'-+=/()→…⏎_")
    kept = "".join(c if c.isalnum() or c in plain else f"#{ord(c)};" for c in " ".join(text.split()))
    return f'"{kept}"'
