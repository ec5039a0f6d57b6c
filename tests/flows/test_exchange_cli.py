"""`strop export | import` as a user types them, and what is exported of a policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from strop.flows import cli
from strop.storage.console import open_console


def strop(*arguments: object) -> int:
    return cli.invoke([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def policy(smoke: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy") / "hub"
    assert strop("export", "policy", "smoke/r2", "-o", out, "--lake", smoke.lake) == 0
    return out


def test_a_policy_loads_from_the_folder_alone(policy: Path, smoke: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    with open_console(smoke.lake) as console:
        ((path, problem, completion),) = console.query(
            "SELECT q.path, r.prompt, r.completion FROM policies q JOIN rollouts r USING (policy_id) "
            "WHERE q.name = 'smoke/r2' AND r.finish_reason = 'stop' ORDER BY r.rollout_id LIMIT 1"
        ).rows
    kept = AutoModelForCausalLM.from_pretrained(smoke.lake / path)
    ids = tokenizer(problem + completion, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == problem + completion
    with torch.no_grad():
        assert torch.equal(model(ids).logits, kept(ids).logits)


def test_its_card_is_one_the_hub_can_parse(policy: Path, smoke: Any) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(policy / "README.md", ignore_metadata_errors=False)
    assert (card.data.library_name, card.data.license, card.data.pipeline_tag) == (
        "transformers",
        "unknown",
        "text-generation",
    )
    assert "base_model" not in card.data.to_dict(), "the default base is made here: the hub has none to link to"
    with open_console(smoke.lake) as console:
        stored = console.query(
            "SELECT slice, metrics.name, value, ci_low, ci_high, n FROM metrics JOIN policies USING (policy_id) "
            "WHERE policies.name = 'smoke/r2' ORDER BY ALL"
        ).rows
        trained = console.query(
            "SELECT count(*), count(DISTINCT e.problem_id) FROM policy_examples JOIN examples e USING (example_id) "
            "JOIN policies USING (policy_id) WHERE policies.name = 'smoke/r2'"
        ).rows[0]
        code, hash = console.query(
            "SELECT strop_version, content_hash FROM runs JOIN policies USING (run_id) WHERE name = 'smoke/r2'"
        ).rows[0]
    results = card.data.eval_results
    assert card.data.model_name == "smoke/r2"
    found = [
        (r.dataset_config, r.metric_type, r.metric_value, *(r.metric_args[k] for k in ("ci_low", "ci_high", "n")))
        for r in results
    ]
    assert sorted(found) == [tuple(row) for row in stored]
    assert {r.dataset_split for r in results} == {"heldout"}
    for said in (
        f"| sft | {trained[0]} | {trained[1]} |",
        f"content hash `{hash}`",
        f"Strop {code}",
        "| smoke/r1 | full |",
        "| smoke/r0 | base |",
        "| answer | 1 |",
        "| chain_arithmetic | task |",
        "| chain_arithmetic | weakness |",
        "strop run smoke --seed 0 --rounds 2",
    ):
        assert said in card.text, said
    assert json.loads((policy / "recipe.json").read_text())["name"] == "smoke"


def test_a_base_from_the_hub_is_linked() -> None:
    from huggingface_hub import ModelCard

    from strop.storage.exchange.model_card import model_card

    recipe = {
        "base": {"use": "huggingface", "model": "owner/some-model"},
        "tasks": {"gsm": {"use": "hf_dataset", "dataset": "openai/gsm8k"}},
    }
    policy = {"name": "r/r1", "kind": "full", "status": "champion", "round": 1, "objective": "dpo", "content_hash": "h"}
    empty: dict[str, Any] = {name: [] for name in ("chain", "trained_on", "problems", "verifiers", "metrics")}
    run = {"run_id": "r", "recipe_json": json.dumps(recipe), "recipe": "mine", "recipe_hash": "x", "seed": 1}
    about = {"policy": policy, "run": run, "snapshot": 3, "strop_version": "0", **empty}
    data = ModelCard(model_card(about)).data.to_dict()
    assert (data["base_model"], data["base_model_relation"], data["datasets"]) == (
        "owner/some-model",
        "finetune",
        ["openai/gsm8k"],
    )
    assert "dpo" in data["tags"]


def test_a_changed_checkpoint_is_not_exported(smoke: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_console(smoke.lake) as console:
        path = console.query("SELECT path FROM policies WHERE name = 'smoke/r1'").rows[0][0]
    weights = next((smoke.lake / path).glob("*.safetensors"))
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert strop("export", "policy", "smoke/r1", "-o", tmp_path / "x", "--lake", smoke.lake) == 1
    finally:
        weights.write_bytes(whole)
    assert "is not what was stored" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["policy", "smoke/r9", "-o", "x"], 1, "has no policy 'smoke/r9'; did you mean 'smoke/r"),
        (["policy", "smoke/r1", "-o", "x.jsonl"], 1, "a policy is a folder"),
        (["sft", "trl", "-o", "x", "--round", "one"], 2, "a range of them, 2-5"),
        (["sft", "trl", "-o", "x", "--split", "test"], 2, "there is: heldout, train"),
        (["sft", "trl", "-o", "x", "--run", "smok"], 1, "did you mean 'smoke'"),
        (["prompts", "verl", "-o", "x", "--verify", "anwser"], 2, "did you mean 'answer'"),
        (["pairs", "trl", "-o", "x"], 1, "the selection holds no pairs"),
    ],
)
def test_what_is_wrong_is_said(
    smoke: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert strop("export", *arguments, "--lake", smoke.lake) == code
    assert said in capsys.readouterr().err.replace("\n", " ").replace("│", "").replace("  ", " ")
    assert list(tmp_path.iterdir()) == []


def test_as_of_is_the_lake_as_it_stood(smoke: Any, tmp_path: Path) -> None:
    def newest(*as_of: str) -> int:
        asked = ["export", "rollouts", "rows", "-o", tmp_path / "x.jsonl", "--lake", smoke.lake, "--force", *as_of]
        assert strop(*asked, "--run", "smoke") == 0
        return max(json.loads(line)["round"] for line in (tmp_path / "x.jsonl").read_text().splitlines())

    assert (newest(), newest("--as-of", "round=1"), newest("--as-of", "smoke@0")) == (2, 1, 0)


def test_export_then_import_then_look(smoke: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, lake = tmp_path / "r.jsonl", tmp_path / "lake"
    asked = ["--where", "verdict = 'pass'", "--round", "2", "--limit", "50"]
    assert strop("export", "rollouts", "strop", "-o", lines, "--lake", smoke.lake, *asked) == 0
    assert capsys.readouterr().out.startswith(f"{lines}: 50 rollouts (strop), snapshot ")
    assert strop("import", "strop", lines, "--run-id", "copy", "--lake", lake) == 0
    assert ", 50 rollouts, 50 scores" in capsys.readouterr().out
    assert strop("import", "strop", lines, "--run-id", "copy", "--lake", lake, "--json") == 0
    assert json.loads(capsys.readouterr().out)["new_shards"] == 0
    assert strop("status", "copy", "--lake", lake) == 0
    assert "import:strop" in capsys.readouterr().out
    with open_console(lake) as console:
        id, policy = console.query("SELECT rollout_id, q.name FROM rollouts JOIN policies q USING (policy_id)").rows[0]
    assert policy.startswith("copy/r")
    for name, opens in ((id, "rollout '"), (policy, f"policy {policy}"), ("copy", "run copy")):
        assert strop("lineage", name, "--lake", lake) == 0
        told = capsys.readouterr().out
        assert told.startswith(opens)
        assert "import" in told
    assert strop("export", "policy", policy, "-o", tmp_path / "p", "--lake", lake) == 1
    assert "was imported by its name" in capsys.readouterr().err


def test_bad_lines_are_listed_where_they_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, lake = tmp_path / "x.jsonl", tmp_path / "lake"
    lines.write_text('{"problem": "p", "completion": "c"}\n{"problem": "p"}\n')
    assert strop("import", "strop", lines, "--run-id", "r", "--lake", lake) == 1
    assert f"{lines}:2: a line needs `completion`" in capsys.readouterr().err
    assert strop("import", "strop", lines, "--run-id", "r", "--lake", lake, "--skip-bad") == 0
    report = lake / "logs" / "r" / "import-skipped.jsonl"
    assert f"1 lines left out, listed in {report}" in capsys.readouterr().out
    assert json.loads(report.read_text())["line"] == 2


def test_the_commands_load_nothing_heavy_to_say_what_they_are() -> None:
    code = (
        "import sys\nfrom strop.flows import cli\n"
        "for name in ('export', 'import'):\n    assert cli.invoke([name, '--help']) == 0\n"
        "print([m for m in ('torch', 'pyarrow', 'datasets', 'transformers', 'duckdb', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
