"""`pillion adapters`: the versions of one, which of them is live, and who gets another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pillion.cli.options import Json, NoWait, Ref, Timeout
from pillion.cli.session import session

if TYPE_CHECKING:
    from pillion.sdk import Pillion
    from pillion.sdk.types import AdapterVersion

Number = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version's number.")]


def versions(ctx: typer.Context, ref: Ref, as_json: Json = False) -> None:
    """List an adapter's versions and what becomes of each; one is live."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.adapters.versions(ref), columns.VERSIONS, as_json)


def add_version(
    ctx: typer.Context,
    ref: Ref,
    file: Annotated[
        Path | None, typer.Argument(help="adapter_model.safetensors, a .tar.gz or .zip, or a PEFT folder.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Its adapter_config.json.")] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="A Hugging Face repo instead of a file.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Of the repo: a branch, tag or commit. [default: main]")
    ] = None,
    keep_back: Annotated[
        bool, typer.Option("--keep-back", help="Do not let it go live: `pillion adapters live` does.")
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = 1800.0,
    as_json: Json = False,
) -> None:
    """Give an adapter new bytes. They go live once every replica that must have them does."""
    from pillion.cli import progress

    if (file is None) == (repo is None):
        raise typer.BadParameter("give a file or folder, or --repo; not both.")
    with session(ctx) as client:
        if file is not None:
            with progress.transfer(f"uploading {file.name}") as on_bytes:
                version = client.adapters.add_version(
                    ref, file, config=config, live=not keep_back, on_bytes=on_bytes
                )
        else:
            assert repo is not None
            found = _imported(client, ref, repo, revision, keep_back, no_wait, timeout)
            if found is None:
                return
            version = found
        _settle(client, ref, version, no_wait, timeout, as_json)


def live(
    ctx: typer.Context,
    ref: Ref,
    version: Number,
    no_wait: NoWait = False,
    timeout: Timeout = 1800.0,
    as_json: Json = False,
) -> None:
    """Make a version the live one."""
    with session(ctx) as client:
        _settle(client, ref, client.adapters.make_live(ref, version), no_wait, timeout, as_json)


def rollback(
    ctx: typer.Context,
    ref: Ref,
    no_wait: NoWait = False,
    timeout: Timeout = 1800.0,
    as_json: Json = False,
) -> None:
    """Go back to the version that was live before, or call off one that is going live."""
    with session(ctx) as client:
        _settle(client, ref, client.adapters.rollback(ref), no_wait, timeout, as_json)


def canary(
    ctx: typer.Context,
    ref: Ref,
    version: Number,
    share: Annotated[float, typer.Option("--share", min=0, max=1, help="Of the requests, from 0 to 1.")],
    as_json: Json = False,
) -> None:
    """Send a share of the requests to a version. It takes a slot more on every replica."""
    with session(ctx) as client:
        _show(client.adapters.set_canary(ref, version, share), as_json)


def end_canary(ctx: typer.Context, ref: Ref, as_json: Json = False) -> None:
    """Send all requests to the live version again."""
    with session(ctx) as client:
        _show(client.adapters.end_canary(ref), as_json)


def add_to(app: typer.Typer) -> None:
    for command in (versions, add_version, live, rollback, canary, end_canary):
        app.command(command.__name__.replace("_", "-"))(command)


def _imported(
    client: Pillion, ref: str, repo: str, revision: str | None, keep_back: bool, no_wait: bool, timeout: float
) -> AdapterVersion | None:
    """The newest version once the import is done; None where it is not waited for."""
    from pillion.cli import output, progress

    begun = client.adapters.import_version(ref, repo, revision=revision, live=not keep_back)
    if no_wait:
        output.note(f"importing; follow it with: pillion jobs follow {begun.job.id}")
        return None
    with progress.steps(f"importing {repo}") as told:
        client.jobs.wait(begun.job.id, timeout=timeout, on_progress=told)
    return max(client.adapters.versions(ref), key=lambda version: version.version)


def _settle(
    client: Pillion, ref: str, version: AdapterVersion, no_wait: bool, timeout: float, as_json: bool
) -> None:
    """Wait until it is live where it is going to be, unless told not to, and print it."""
    from pillion.cli import progress

    if not no_wait and version.state in ("going_live", "failed"):
        with progress.steps(f"version {version.version}") as told:
            version = client.adapters.wait_live(ref, version.version, timeout=timeout, on_progress=told)
    _show(version, as_json)


def _show(version: AdapterVersion, as_json: bool) -> None:
    from pillion.cli import columns, output

    for warning in version.warnings:
        output.note(f"warning: {warning}")
    if version.unacknowledged:
        output.note(f"not yet heard by: {', '.join(version.unacknowledged)}")
    output.print_record(version, columns.VERSIONS, as_json)
