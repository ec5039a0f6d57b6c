"""The command line: parses, calls the layer that does the work, and turns errors into one message and an exit code.

Exit codes: 0 done, 1 failed, 2 bad usage, recipe or plugin, 3 the gate refused (`run --fail-if-not-promoted` alone),
130 interrupted. Nothing heavy is imported here: `strop --help`, `status`, `validate` and `plan` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from strop.flows import (
    cli_care,
    cli_diff,
    cli_exchange,
    cli_import,
    cli_lake,
    cli_lineage,
    cli_plugins,
    cli_project,
    cli_remote,
    cli_reuse,
    cli_run,
    cli_server,
    cli_sql,
)
from strop.flows.output import say
from strop.storage.errors import PluginError, RecipeError, StropError

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130

app = typer.Typer(
    name="strop",
    help="Sharpen a language model on its own verified rollouts, round after round.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: half the start-up time, and the same text at every width for the docs
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"strop {version('strop')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _name, _command in (
    ("run", cli_run.run),
    ("rerun", cli_reuse.rerun),
    ("reverify", cli_reuse.reverify),
    ("serve", cli_run.serve),
    ("plan", cli_run.plan),
    ("validate", cli_run.validate),
    ("status", cli_lake.status),
    ("sql", cli_sql.sql),
    ("snapshots", cli_sql.snapshots),
    ("diff", cli_diff.diff),
    ("lineage", cli_lineage.lineage),
    ("explain", cli_lineage.explain),
    ("show", cli_lake.show),
    ("export", cli_exchange.export),
    ("import", cli_import.import_),
    ("fsck", cli_care.fsck),
    ("gc", cli_care.gc),
    ("init", cli_project.init),
    ("doctor", cli_project.doctor),
):
    app.command(_name)(_command)
app.add_typer(cli_plugins.app, name="plugins")
app.add_typer(cli_server.app, name="server")
app.add_typer(cli_remote.app, name="lake")


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. Errors are printed, none is raised."""
    try:
        code = app(args=arguments, prog_name="strop", standalone_mode=False)
        return code if isinstance(code, int) else DONE
    except (RecipeError, PluginError) as error:
        return _refused(error, USAGE)
    except StropError as error:
        return _refused(error, FAILED)
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `strop sql ... | head`
        _close_stdout()
        return DONE
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error; its class is private to typer
            error.show()
            return int(error.exit_code)
        return _unexpected(error)


def main() -> NoReturn:
    """What the `strop` command calls."""
    sys.exit(invoke())


def _refused(error: Any, code: int) -> int:
    say(f"error: {error}")
    return code


def _unexpected(error: Exception) -> int:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="strop-error-", suffix=".log", delete=False) as log:
        print("command:", *sys.argv, file=log)
        traceback.print_exception(error, file=log)
    say(f"error: {type(error).__name__}: {error}")
    say(f"This is a bug in Strop or in a plugin; the traceback is in {log.name}")
    return FAILED


def _close_stdout() -> None:
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
