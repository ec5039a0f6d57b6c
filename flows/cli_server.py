"""`strop server`: the project's Prefect server."""

from __future__ import annotations

import typer

from strop.flows import options, server
from strop.flows.output import as_json, say

app = typer.Typer(help="Start, find or stop the Prefect server.", no_args_is_help=True)


@app.command()
def start(lake: options.Lake = options.LAKE) -> None:
    """Start the project's server, or find the one that runs."""
    info = server.ensure(server.home_of(lake))
    print(info.ui)
    if info.pid is not None:
        say(f"process {info.pid}, log {info.log}; stop it with: strop server stop")


@app.command()
def stop(lake: options.Lake = options.LAKE) -> None:
    """Stop the project's server."""
    home = server.home_of(lake)
    if server.stop(home):
        say(f"stopped the Prefect server of {home}")
    else:
        say(f"no Prefect server of {home} was running")


@app.command()
def status(lake: options.Lake = options.LAKE, json: options.Json = False) -> int:
    """Say whether the project's server runs, and where. Exits with 1 when it does not."""
    home = server.home_of(lake)
    state, info = server.status(home)
    if json:
        print(as_json({"state": state, "home": str(home), "url": info and info.url, "pid": info and info.pid}))
    else:
        where = f" at {info.ui}" if info else ""
        print(f"{state}{where}" + (f" (process {info.pid}, log {info.log})" if info and info.pid else ""))
    return 0 if state in {"running", "given"} else 1
