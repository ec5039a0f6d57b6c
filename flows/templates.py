"""What `strop plugins new` and `strop init` write."""

from __future__ import annotations

from pathlib import Path
from string import Template

from strop.flows.skeletons import ENGINE_IMPORTS, EXTRA_IMPORTS, SKELETONS

PLUGIN = Template('''"""$idea

Source: your own.
"""

from __future__ import annotations

$imports

class $class_name($config):
    """Settings of `$name`."""

    $field
    """$field_doc"""


@stage("$stage")
$signature
    """$does"""
$body
''')

TEST = Template('''"""The promises of `$name`."""

from pathlib import Path

import pytest
from strop.core import registry

HERE = Path(__file__).parent


def test_it_keeps_the_contract_of_its_stage():
    plugin = registry.find("$stage", "./$name.py:$name", folder=HERE)
    assert plugin.mark.stage == "$stage"
    assert plugin.doc == "$idea"


def test_its_settings_refuse_unknown_keys():
    plugin = registry.find("$stage", "./$name.py:$name", folder=HERE)
    with pytest.raises(ValueError, match="extra"):
        plugin.configure({"no_such_setting": 1})
''')
LINE = 120


def plugin_files(stage: str, name: str) -> dict[str, str]:
    """A plugin of the stage and its test, by file name."""
    part = SKELETONS[stage]
    class_name = "".join(word.capitalize() for word in name.split("_"))
    standard = EXTRA_IMPORTS.get(stage, ())
    first = [ENGINE_IMPORTS[stage]] if stage in ENGINE_IMPORTS else []
    first.append(f"from strop.core.plugin import {', '.join(sorted([part.config, *part.core, 'stage'], key=_case))}")
    if part.imports:
        first.append(f"from strop.storage.tables import {', '.join(part.imports)}")
    imports = "\n".join([*standard, *([""] if standard else []), *sorted(first)])
    mark = 'objective", examples="sft' if stage == "objective" else stage
    function, _, rest = part.body.strip("\n").partition("\n\n\n")
    body = "\n".join(f"    {line}" if line else "" for line in function.splitlines())
    text = PLUGIN.substitute(
        idea=part.idea,
        imports=imports + "\n",
        class_name=class_name,
        config=part.config,
        name=name,
        field=part.field,
        field_doc=part.field_doc,
        stage=mark,
        signature=_signature(name, class_name, part.handles, part.returns),
        does=part.idea,
        body=body + (f"\n\n\n{Template(rest).substitute(name=name)}" if rest else ""),
    )
    return {
        f"{name}.py": text.rstrip() + "\n",
        f"test_{name}.py": TEST.substitute(name=name, stage=stage, idea=part.idea),
    }


def _signature(name: str, class_name: str, handles: tuple[str, ...], returns: str) -> str:
    """The function's first lines: on one line where they fit, else a parameter a line."""
    flat = f"def {name}(config: {class_name}, *, {', '.join(handles)}) -> {returns}:"
    if len(flat) <= LINE:
        return flat
    inner = "".join(f"    {handle},\n" for handle in (f"config: {class_name}", "*", *handles))
    return f"def {name}(\n{inner}) -> {returns}:"


def _case(name: str) -> tuple[bool, str]:
    """Classes before functions, as isort has them."""
    return name[0].islower(), name


def write(files: dict[str, str], folder: Path) -> None:
    """Write files under a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text)
