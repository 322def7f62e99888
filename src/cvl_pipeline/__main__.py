"""``python -m cvl_pipeline`` runs the pipeline of the project in the working directory."""

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project

PACKAGE = "cvl_pipeline.kedro"


def main() -> None:
    """Run Kedro's ``run`` command."""
    configure_project(PACKAGE)
    find_run_command(PACKAGE)()


if __name__ == "__main__":
    main()
