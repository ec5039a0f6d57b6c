"""Every reference between rows is a link, and every link is walked both ways alike."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strop.storage.console import Console, open_console
from strop.storage.kinds import KINDS
from strop.storage.links import LINKS, Link
from strop.storage.nodes import Node, Reader
from strop.storage.ready_views import READY
from strop.storage.tables import BY_NAME, TABLES, columns
from strop.storage.walk import walk

COUNTS = {"seed", "n_tokens", "n", "examples", "steps", "tokens"}
"""BIGINT columns that count or draw, and name no row."""
NOT_LINKS = {
    "runs.stage_run_id": "the stage run of a run's first commit belongs to that run",
    "policy_examples.policy_id": "the other end of `policy_examples.example_id`",
    "train_metrics.policy_id": "numbers of the policy's own training, made with it",
    "token_logps.rollout_id": "the other end of `token_logps.policy_id`",
}
OWN = {"run_id", "stage_run_id"}
"""Columns of every row; tables without an id of their own have no node to link."""


def test_every_column_that_names_rows_is_a_link() -> None:
    linked = {link.column for link in LINKS}
    for table in TABLES:
        for c in columns(table):
            names = c.name.endswith("_id") or c.sql_type in ("BIGINT", "BIGINT[]") or c.name == "upstream"
            own = c.name == table.ID or (c.name in OWN and table.ID is None) or c.name == "run_id"
            full = f"{table.TABLE}.{c.name}"
            if names and not own and c.name not in COUNTS and full not in NOT_LINKS:
                assert full in linked, f"{full} is no link: add it to storage/links.py, or say here why it is none"
    assert linked - {""} <= {f"{t.TABLE}.{c.name}" for t in TABLES for c in columns(t)}


def test_every_table_with_ids_is_a_kind() -> None:
    assert {t.TABLE for t in TABLES if t.ID} <= {kind.table for kind in KINDS.values()}
    assert {kind.table for kind in KINDS.values()} - {""} <= set(BY_NAME)


@pytest.fixture(scope="module")
def console(every_link_lake) -> Iterator[Console]:
    with open_console(every_link_lake) as opened:
        yield opened


def reached(console: Console, place: tuple[str, int | str], direction: str, link: Link) -> set[str]:
    """Ids one step away along a link, as the walk finds them."""
    said = link.up if direction == "up" else link.down
    other = link.parent if direction == "up" else link.child
    node = walk(Reader(console), place, direction, limit=10_000, depth=1)  # type: ignore[arg-type]
    found: set[str] = set()
    for child in node.children:
        if child.relation == said:
            members: tuple[Node, ...] = (child,) if child.id else child.children
            found |= {m.id for m in members if m.kind == other}
    return found


@pytest.mark.parametrize("link", LINKS, ids=lambda k: f"{k.child}-{k.up}-{k.parent}-{k.down}".replace(" ", "_"))
def test_up_and_down_agree(console: Console, link: Link) -> None:
    pairs = console.query(f"SELECT child_id, parent_id FROM ({link.sql}) ORDER BY ALL").rows
    assert pairs, "the lake of this test has no such link"
    assert len(pairs) == len(set(pairs)), "a pair twice"
    for child, parent in pairs[:2] + pairs[-2:]:
        assert reached(console, (link.child, child), "up", link) >= {str(p) for c, p in pairs if c == child}
        assert reached(console, (link.parent, parent), "down", link) >= {str(c) for c, p in pairs if p == parent}
        if not any(other.up == link.up and other.parent == link.parent for other in LINKS if other != link):
            assert reached(console, (link.child, child), "up", link) == {str(p) for c, p in pairs if c == child}


def test_evidence_is_what_the_run_of_an_example_used(console: Console) -> None:
    judged, let_in = (next(k for k in LINKS if (k.child, k.up) == ("example", up)) for up in ("judged by", "let in by"))
    assert reached(console, ("example", 401), "up", judged) == {"201", "206"}  # not 221, of the rerun
    assert reached(console, ("example", 421), "up", judged) == {"222"}  # not 205, of the run it re-uses
    assert reached(console, ("example", 421), "up", let_in) == {"504"}  # a decision that it re-uses


def test_the_view_of_links_is_their_union(console: Console) -> None:
    view: dict[tuple[str, str, str], set[tuple[int, int]]] = {}
    for kind, id, relation, to_kind, to in console.query(
        "SELECT from_kind, from_id, relation, to_kind, to_id FROM v_lineage"
    ).rows:
        view.setdefault((kind, relation, to_kind), set()).add((id, to))
    wanted: dict[tuple[str, str, str], set[tuple[int, int]]] = {}
    for link in LINKS:
        if not (KINDS[link.child].names_text or KINDS[link.parent].names_text):
            pairs = console.query(f"SELECT child_id, parent_id FROM ({link.sql})").rows
            wanted.setdefault((link.child, link.up, link.parent), set()).update((c, p) for c, p in pairs)
    assert view == wanted


def test_every_view_says_what_its_columns_are(console: Console) -> None:
    for view in READY.values():
        described = console.query(f"DESCRIBE {view.name}").rows
        assert [(c.name, c.sql_type) for c in view.columns] == [row[:2] for row in described], view.name
        assert all(c.doc for c in view.columns)
