"""Puts conf/ into the package, as the files that ``cvl init`` writes; pyproject.toml has everything else."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfiguration(build_py):
    """Builds the package with a copy of conf/ in it. An editable install reads conf/ itself."""

    def run(self) -> None:
        """Build, and copy what git keeps of conf/: never the user's own settings in conf/local."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "cvl_pipeline", "conf")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "conf", target, ignore=shutil.ignore_patterns("local", "credentials*"))


setup(cmdclass={"build_py": BuildWithConfiguration})
