"""The commands ``cvl`` and ``cvl-pipeline``, and ``python -m cvl_pipeline``.

``cvl init`` makes a folder a project. ``cvl run``, ``cvl suite`` and so on are the commands of ``kedro`` there. Options
without a command are those of ``run``.
"""

import sys
from pathlib import Path

import click

from cvl_pipeline import __version__
from cvl_pipeline.errors import InputError

PACKAGE = "cvl_pipeline.kedro"


@click.command()
@click.argument("folder", default=".", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Make FOLDER a project: configuration, folders for data, .gitignore. Default: the current folder."""
    from cvl_pipeline.kedro.starter import write_project

    try:
        kept = write_project(folder)
    except InputError as error:
        raise click.ClickException(str(error)) from error
    for name in kept:
        click.echo(f"kept {name}, which was there")
    inside = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    click.echo(f"Wrote the project. To see that everything works: {inside}kedro run --env smoke")


def main() -> None:
    """Run the command that the arguments name."""
    command = sys.argv[1] if len(sys.argv) > 1 else None
    if command == "init":
        init(sys.argv[2:], prog_name="cvl init")
    elif command == "--version":
        click.echo(f"cvl-pipeline {__version__}")
    elif command is not None and not command.startswith("-"):
        from kedro.framework.cli.cli import main as kedro

        kedro()
    else:
        from kedro.framework.cli.utils import find_run_command
        from kedro.framework.project import configure_project

        configure_project(PACKAGE)
        find_run_command(PACKAGE)()


if __name__ == "__main__":
    main()
