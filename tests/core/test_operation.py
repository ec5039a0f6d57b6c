"""Settings that say how an engine works, and not what comes of it, may change within a run."""

import tiny_run

from strop.core import recipe as recipe_module
from strop.core.plugin import Config

PLUGINS = """
from typing import Annotated

from strop.core.plugin import OPERATION
from strop.plugins.engines.scripted import Scripted, ScriptedEngine


class Tool(Config):
    speed: Annotated[int, OPERATION] = 1
    reply: str = "1"


@stage("engine")
def tool(config: Tool):
    return ScriptedEngine(Scripted(rules=[{"match": "", "replies": [config.reply, "2"]}]))
"""


def made(folder, **settings):
    return tiny_run.write(folder, plugins=PLUGINS, engine={"use": "./mine.py:tool", **settings}, rounds=1)


def test_a_run_goes_on_at_another_speed_and_not_with_another_reply(tiny, tmp_path):
    first = made(tmp_path)
    assert tiny.run(first, tmp_path).rounds == 1
    faster = recipe_module.build(first.source, first.path).override(["engine.speed=2"])
    assert faster.identity() == first.identity()
    assert faster.engine.config.speed == 2
    assert tiny.run(faster, tmp_path).rounds == 1
    other = first.override(["engine.reply=one"])
    assert other.identity() != first.identity()


def test_a_run_that_an_older_strop_began_goes_on_though_it_kept_such_settings_as_decisive(tiny, tmp_path, monkeypatch):
    recipe = made(tmp_path)
    with monkeypatch.context() as older:
        older.setattr(Config, "operation", lambda self: {})
        before = recipe.identity()
        tiny.run(recipe, tmp_path)
    faster = recipe.override(["engine.speed=2"])
    assert faster.identity() != before
    assert tiny.run(faster, tmp_path).rounds == 1
