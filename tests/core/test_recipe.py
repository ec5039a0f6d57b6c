from pathlib import Path

import pytest

from strop.core.recipe import default_run_id, load, shipped
from strop.storage.errors import PluginError, RecipeError

GOOD = """\
name: mine
rounds: 2
base: pretrained_char
tasks: [chain_arithmetic]
engine: hf
round:
  - select: {use: uniform, problems: 8}
  - generate: {use: sample, n: 4, max_tokens: 16}
  - verify: answer
  - filter: correct
  - build: rft
  - train: {objective: {use: dpo, beta: 0.2}, lr: 1.0e-3}
  - evaluate: pass_at_k
  - evaluate: diversity
  - gate: bootstrap_better
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text: str = GOOD) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description


def test_steps_are_labelled_by_kind_and_by_name_where_a_kind_repeats(recipe_file):
    labels = [step.label for step in load(recipe_file()).round]
    assert labels == [
        "select",
        "generate",
        "verify",
        "filter",
        "build",
        "train",
        "heldout",
        "heldout.verify",
        "evaluate.pass_at_k",
        "evaluate.diversity",
        "gate",
    ]


def test_held_out_problems_are_sampled_as_the_recipe_says(recipe_file):
    recipe = load(recipe_file(GOOD + "heldout: {n: 3, max_tokens: 5}\n"))
    heldout = next(step for step in recipe.round if step.label == "heldout")
    assert (heldout.config.n, heldout.config.max_tokens, heldout.split) == (3, 5, "heldout")


@pytest.mark.parametrize(
    ("override", "label", "key", "value"),
    [
        ("generate.n=16", "generate", "n", 16),
        ("select.problems=9", "select", "problems", 9),
        ("train.lr=0.5", "train", "lr", 0.5),
        ("heldout.n=2", "heldout", "n", 2),
        ("evaluate.pass_at_k.k=[1, 2]", "evaluate.pass_at_k", "k", [1, 2]),
    ],
)
def test_set_reaches_every_stage(recipe_file, override, label, key, value):
    recipe = load(recipe_file(), overrides=[override])
    found = getattr(next(step for step in recipe.round if step.label == label).config, key)
    assert (list(found) if isinstance(found, tuple) else found) == value


def test_set_reaches_the_objective_the_task_and_the_top_level(recipe_file):
    recipe = load(recipe_file(), overrides=["train.objective.beta=0.7", "rounds=9", "workers=1", "engine.batch_rows=7"])
    train = next(step for step in recipe.round if step.kind == "train")
    assert train.objective.beta == 0.7
    assert (recipe.rounds, recipe.workers, recipe.engine.config.batch_rows) == (9, 1, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rounds: 2", "rounds: 2\nround_s: 3"), r"mine\.yaml:3: unknown key 'round_s'; did you mean 'rounds'\?"),
        (("n: 4", "m: 4"), r"mine\.yaml:8: unknown key 'm'"),
        (("use: sample", "use: smaple"), r"mine\.yaml:8: no generate plugin 'smaple'; did you mean 'sample'\?"),
        (("- verify: answer", "- verfy: answer"), r"mine\.yaml:9: unknown stage 'verfy'; did you mean 'verify'\?"),
        (("rounds: 2", "rounds: none"), r"mine\.yaml:2: rounds: .*integer.* got 'none'"),
        (("beta: 0.2", "betta: 0.2"), r"mine\.yaml:12: unknown key 'betta'; did you mean 'beta'\?"),
        (("lr: 1.0e-3", "learning_rate: 1.0e-3"), r"mine\.yaml:12: unknown key 'learning_rate'"),
        (("  - build: rft\n", ""), r"mine\.yaml:11: `train` reads examples.* put a `build` before it"),
        (
            ("  - select: {use: uniform, problems: 8}\n", ""),
            r"mine\.yaml:7: `generate` reads plan.* put a `select` before it",
        ),
        (("engine: hf", "engine: hf\nengine: hf"), r"mine\.yaml:6: the key 'engine' stands here twice"),
        (("name: mine", "name: [mine"), r"mine\.yaml:\d+: not valid YAML"),
        (("name: mine", "name: My Recipe"), r"mine\.yaml:1: name: "),
        (
            ("- verify: answer", "- {verify: answer, filter: correct}"),
            r"mine\.yaml:9: one stage an entry",
        ),
        (("- verify: answer", "- verify: {extract: whole}"), r"mine\.yaml:9: name the verify plugin"),
        (("rounds: 2\n", ""), r"mine\.yaml:1: 'rounds' is required"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_line_and_what_to_write(recipe_file, change, message):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises((RecipeError, PluginError), match=message):
        load(recipe_file(text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("generate.n", "write stage.key=value"),
        ("generat.n=1", r"no 'generat'; did you mean 'generate'\?"),
        ("evaluate.seed=1", r"2 evaluate entries; write one of evaluate\.pass_at_k"),
        ("generate.nn=1", "unknown key 'nn'"),
        ("generate=3", "name a key of 'generate'"),
    ],
)
def test_a_bad_set_is_refused(recipe_file, override, message):
    with pytest.raises(RecipeError, match=message):
        load(recipe_file(), overrides=[override])


def test_an_unknown_name_suggests_a_shipped_recipe():
    with pytest.raises(RecipeError, match=r"no shipped recipe 'defualt'; did you mean 'default'\?"):
        load("defualt")


def test_identity_covers_settings_and_seed_but_not_the_number_of_rounds(recipe_file):
    path = recipe_file()
    plain = load(path)
    assert load(path, overrides=["rounds=7"]).identity() == plain.identity()
    assert load(path, overrides=["generate.n=5"]).identity() != plain.identity()
    assert load(path, seed=1).identity() != plain.identity()
    assert default_run_id(load(path, seed=1)).startswith("mine-s1-")


def test_identity_does_not_depend_on_the_order_in_which_a_plugin_declares_its_settings(tmp_path):
    found = set()
    for settings in (["low: float = 0.2", "high: float = 0.3"], ["high: float = 0.3", "low: float = 0.2"]):
        path, lines = tmp_path / settings[0][:3] / "mine.yaml", "\n    ".join(settings)
        path.parent.mkdir()
        path.write_text(GOOD.replace("filter: correct", "filter: ./mine.py:within"))
        path.with_name("mine.py").write_text(
            "from strop.core.plugin import Config, stage\n"
            f"class Within(Config):\n    {lines}\n"
            "@stage('filter')\ndef within(config: Within, *, rollouts):\n    return []\n"
        )
        found.add(load(str(path)).identity())
    assert len(found) == 1


def test_a_default_written_out_is_the_same_recipe(recipe_file):
    written_out = GOOD.replace("- verify: answer", "- verify: {use: answer, as: answer}")
    assert load(recipe_file(written_out)).identity() == load(recipe_file()).identity()


def test_local_plugins_and_paths_are_relative_to_the_recipe(tmp_path, recipe_file, monkeypatch):
    (tmp_path / "mine.py").write_text(
        '"""A filter."""\n'
        "from strop.core.plugin import Config, stage\n"
        "class Keep(Config):\n"
        '    """Settings."""\n'
        "    file: str\n"
        '    """A file."""\n'
        '@stage("filter")\n'
        "def keep(config: Keep, *, rollouts):\n"
        "    return []\n"
    )
    path = recipe_file(GOOD.replace("- filter: correct", "- filter: {use: './mine.py:keep', file: ./data.txt}"))
    monkeypatch.chdir("/")
    step = next(step for step in load(path).round if step.kind == "filter")
    assert step.config.file == str(Path(path).parent / "data.txt")
    assert step.name == "keep"


def test_two_verifiers_both_examine_the_held_out_problems(recipe_file):
    text = GOOD.replace("  - verify: answer\n", "  - verify: answer\n  - verify: {use: answer, as: strict}\n")
    labels = [step.label for step in load(recipe_file(text)).round]
    assert labels[2:4] == ["verify.answer", "verify.strict"]
    assert "heldout.verify.answer" in labels
    assert "heldout.verify.strict" in labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("tasks: [chain_arithmetic]", "tasks: [chain_arithmetic, chain_arithmetic]"), "two tasks are called"),
        (("- gate: boot", "- gate: {use: bootstrap_better, as: a}\n  - gate: boot"), "one `gate` a round"),
        (("  - build: rft\n", "  - evaluate: {use: diversity, as: d}\n  - build: rft\n"), "put `train` before"),
        (("  - train: {objective: {use: dpo, beta: 0.2}, lr: 1.0e-3}\n", "  - train: 3\n"), "name the objective"),
        (("- verify: answer", "- verify: {use: answer, as: a/b}"), r"mine\.yaml:9: `as` is a name"),
        (("rounds: 2", "rounds: !two 2"), r"mine\.yaml:2: not a value a recipe can hold"),
        (("engine: hf", "engine: {use: scripted, rules: [{replies: [a]}]}"), "'match' is required: Regular"),
        (
            ("engine: hf", "engine: {use: scripted, rules: [{match: a, replies: [a], rply: b}]}"),
            "'rply'; there is: match, replies",
        ),
        (("lr: 1.0e-3", "lora: {rank: 3}"), r"unknown key 'rank'; there is: alpha, dora, dropout, merge, r"),
    ],
)
def test_a_recipe_the_loop_could_not_run_is_refused(recipe_file, change, message):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises((RecipeError, PluginError), match=message):
        load(recipe_file(text))


@pytest.mark.parametrize("broken", ["tasks: 5", "tasks: [5]", "round: 5", "round: [5]"])
def test_set_on_a_broken_recipe_says_what_is_broken(recipe_file, broken):
    key = broken.split(":")[0]
    text = GOOD[: GOOD.index("round:")] if key == "round" else GOOD.replace("tasks: [chain_arithmetic]\n", "")
    with pytest.raises(RecipeError):
        load(recipe_file(text + broken + "\n"), overrides=["task.train=3"])


def test_a_held_out_generator_without_n_gets_no_n(tmp_path, recipe_file):
    (tmp_path / "ask.py").write_text(
        '"""Asks."""\n'
        "from strop.core.plugin import Config, stage\n"
        "class Ask(Config):\n"
        '    """Settings."""\n'
        '@stage("generate")\n'
        "def ask(config: Ask, *, plan):\n"
        "    return []\n"
    )
    recipe = load(recipe_file(GOOD + "heldout: {use: ./ask.py:ask}\n"))
    assert next(step for step in recipe.round if step.label == "heldout").plugin.name == "ask"


def test_a_plugin_of_ones_own_in_place_of_a_built_in_one_makes_another_run(tmp_path, recipe_file):
    from strop.plugins.verify import answer

    (tmp_path / "answer.py").write_text(Path(answer.__file__).read_text())
    built_in = default_run_id(load(recipe_file()))
    own = load(recipe_file(GOOD.replace("- verify: answer", "- verify: ./answer.py:answer")))
    assert default_run_id(own) != built_in


def test_a_setting_that_came_later_makes_another_recipe_only_once_it_is_set(recipe_file):
    def settings(text):
        recipe = load(recipe_file(GOOD.replace("max_tokens: 16", text)))
        return recipe.round[1].settings(), recipe.identity()

    plain, identity = settings("max_tokens: 16")
    assert "min_p" not in plain
    assert settings("max_tokens: 16, min_p: 0.0")[1] == identity
    other, changed = settings("max_tokens: 16, min_p: 0.1")
    assert other["min_p"] == 0.1
    assert changed != identity
