"""Problems from files: what is read, what is held out, and errors that name the file and the line."""

import json
from pathlib import Path

import pytest
from plugin_rows import use
from pydantic import ValidationError

from strop.core.registry import find

ROWS = [{"prompt": f"{i}+1=", "reference": i + 1, "category": "inc", "level": i, "hint": "count"} for i in range(20)]


def write(path: Path, rows) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def jsonl(path: Path, **config):
    return use("task", "jsonl", path=str(path), **config)().problems()


def test_fields_become_columns_and_the_rest_is_kept(tmp_path):
    first = jsonl(write(tmp_path / "a.jsonl", ROWS))[3]
    assert (first.prompt, first.reference, first.category, first.level) == ("3+1=", "4", "inc", 3.0)
    assert json.loads(first.aux) == {"hint": "count"}


def test_fields_may_have_other_names_and_chat_messages_stand_for_the_prompt(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    rows = [{"chat": chat, "a": "2"}, {"q": "2+2?", "a": "4"}]
    problems = jsonl(write(tmp_path / "a.jsonl", rows), prompt="q", reference="a", messages="chat", heldout=0.5)
    assert [(p.prompt, p.reference) for p in problems] == [("1+1?", "2"), ("2+2?", "4")]
    assert json.loads(problems[0].messages) == chat


def test_the_held_out_share_is_chosen_by_content_and_not_by_place(tmp_path):
    def heldout(rows):
        return {p.prompt for p in jsonl(write(tmp_path / "a.jsonl", rows), heldout=0.25) if p.split == "heldout"}

    assert len(heldout(ROWS)) == 5
    assert heldout(ROWS) == heldout(ROWS[::-1])


def test_a_prompt_that_occurs_twice_is_in_one_split(tmp_path):
    problems = jsonl(write(tmp_path / "a.jsonl", ROWS * 2), heldout=0.5)
    train, held = ({p.prompt for p in problems if p.split == s} for s in ("train", "heldout"))
    assert not train & held
    assert len(train) == len(held) == 10


def test_a_file_of_its_own_for_the_held_out_takes_its_prompts_out_of_training(tmp_path):
    held = write(tmp_path / "b.jsonl", ROWS[:5])
    problems = jsonl(write(tmp_path / "a.jsonl", ROWS), heldout_path=str(held))
    assert [p.split for p in problems] == ["train"] * 15 + ["heldout"] * 5
    with pytest.raises(ValueError, match="nothing is left to train on"):
        jsonl(held, heldout_path=str(held))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "a"', "a.jsonl:2: not JSON"),
        ("[1]", "a.jsonl:2: a JSON object"),
        ('{"promt": "a", "reference": 1}', "a.jsonl:2: no field 'prompt'; did you mean 'promt'"),
        ('{"prompt": " ", "reference": 1}', "a.jsonl:2: 'prompt' must be text"),
        ('{"prompt": 5, "reference": 1}', "a.jsonl:2: 'prompt' must be text"),
        ('{"prompt": "a"}', "a.jsonl:2: no field 'reference'.*references: optional"),
        ('{"prompt": "a", "reference": null}', "a.jsonl:2: 'reference' is null"),
        ('{"prompt": "a", "reference": 1, "level": "hard"}', "a.jsonl:2: 'level' must be a number"),
        ('{"messages": "hi", "reference": 1}', "a.jsonl:2: messages must be a list"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path, line, says):
    with pytest.raises(ValueError, match=says):
        jsonl(write(tmp_path / "a.jsonl", [ROWS[0], line, ROWS[1]]))


def test_missing_references_are_allowed_where_the_recipe_says_so(tmp_path):
    problems = jsonl(write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}]), references="optional")
    assert [p.reference for p in problems] == [None, None]


def test_files_without_problems_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl is empty"):
        jsonl(write(tmp_path / "a.jsonl", ["", ""]))
    with pytest.raises(ValueError, match="there is no file"):
        jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="one to hold out are needed, there is 1"):
        jsonl(write(tmp_path / "a.jsonl", ROWS[:1] * 3))
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        jsonl(tmp_path / "b.jsonl")


@pytest.fixture
def own_datasets_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def hf(**config):
    return use("task", "hf_dataset", **config)().problems()


@pytest.mark.usefixtures("own_datasets_cache")
def test_every_local_form_of_a_data_set_gives_the_same_problems(tmp_path):
    import datasets

    rows = [{"prompt": r["prompt"], "reference": str(r["reference"]), "level": r["level"]} for r in ROWS]
    made = datasets.Dataset.from_list(rows)
    made.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", rows)
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "dict")
    found = [hf(path=str(tmp_path / name)) for name in ("a.parquet", "a.jsonl", "saved", "dict")]
    assert [(p.prompt, p.reference, p.level) for p in found[0]] == [tuple(r.values()) for r in rows]
    assert all(problems == found[0] for problems in found)
    assert sum(p.split == "heldout" for p in found[0]) == 2


@pytest.mark.usefixtures("own_datasets_cache")
def test_a_split_of_its_own_is_held_out(tmp_path):
    import datasets

    parts = {"train": ROWS, "test": ROWS[:3]}
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    made.save_to_disk(tmp_path / "dict")
    problems = hf(path=str(tmp_path / "dict"), heldout_split="test")
    assert [p.split for p in problems] == ["train"] * 17 + ["heldout"] * 3
    with pytest.raises(ValueError, match="no split 'tests'; did you mean 'test'"):
        hf(path=str(tmp_path / "dict"), heldout_split="tests")


@pytest.mark.usefixtures("own_datasets_cache")
def test_rows_and_paths_that_do_not_fit_are_named(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "a", "reference": "b"}, {"prompt": "", "reference": "b"}])
    with pytest.raises(ValueError, match=r"a.jsonl \(train\), row 1: 'prompt' must be text"):
        hf(path=str(tmp_path / "a.jsonl"))
    with pytest.raises(ValueError, match="no such file or folder"):
        hf(path=str(tmp_path / "none.parquet"))
    (tmp_path / "a.xls").write_text("")
    with pytest.raises(ValueError, match=r"must end in one of \.parquet"):
        hf(path=str(tmp_path / "a.xls"))


def test_one_source_is_asked_for():
    for values in ({}, {"path": "a.csv", "dataset": "openai/gsm8k"}):
        with pytest.raises(ValidationError, match="one of the two"):
            find("task", "hf_dataset").configure(values)
