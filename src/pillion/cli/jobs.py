"""`pillion jobs`: long work."""

from __future__ import annotations

from typing import Annotated

import typer

from pillion.cli.options import Json, Limit
from pillion.cli.session import session

app = typer.Typer(help="Long work: imports, fine-tunes.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


@app.command("list")
def list_(ctx: typer.Context, limit: Limit = None, as_json: Json = False) -> None:
    """List your jobs."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_records(client.jobs.list(limit=limit), columns.JOBS, as_json)


@app.command()
def get(ctx: typer.Context, job: JobId, as_json: Json = False) -> None:
    """Show one job, and its log."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        found = client.jobs.get(job)
    output.print_record(found, columns.JOB, as_json)
    if not as_json:
        for line in found.log:
            typer.echo(output.printable(line))


@app.command()
def follow(
    ctx: typer.Context,
    job: JobId,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job at each change, as a line of JSON.")
    ] = False,
) -> None:
    """Follow a job until it has ended. Exit code 1 if it failed."""
    from pillion.cli import columns, output, progress
    from pillion.sdk.errors import PillionConnectionError
    from pillion.sdk.waiting import job_progress, job_succeeded

    last = None
    with session(ctx) as client, progress.steps(f"job {job}") as told:
        for last in client.jobs.follow(job):
            if as_json:
                output.print_line(last.raw)
            else:
                told(job_progress(last))
    if last is None or not last.finished:
        raise PillionConnectionError(
            f"The server stopped telling of job {job} before its end.", code="stream_cut"
        )
    if not as_json:
        output.print_record(last, columns.JOB, as_json)
    job_succeeded(last)


@app.command()
def cancel(ctx: typer.Context, job: JobId, as_json: Json = False) -> None:
    """Cancel a job."""
    from pillion.cli import columns, output

    with session(ctx) as client:
        output.print_record(client.jobs.cancel(job), columns.JOB, as_json)
