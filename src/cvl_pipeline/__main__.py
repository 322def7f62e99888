"""``python -m cvl_pipeline`` runs the pipeline of the project in the working directory."""

from pathlib import Path

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main() -> None:
    """Run Kedro's ``run`` command."""
    configure_project(Path(__file__).parent.name)
    find_run_command(Path(__file__).parent.name)()


if __name__ == "__main__":
    main()
