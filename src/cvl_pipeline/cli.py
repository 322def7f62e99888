"""The project's ``kedro run``: Kedro's own, with a person's mistakes told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from cvl_pipeline.errors import InputError


@click.group(name=__file__)
def cli() -> None:
    """Command line of cvl-pipeline."""


class _Run(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except Exception as error:
            for cause in _causes(error):
                if isinstance(cause, InputError):
                    raise click.ClickException(str(cause)) from error
            raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


cli.add_command(_Run("run", params=kedro_run.params, callback=kedro_run.callback, help=kedro_run.help))
