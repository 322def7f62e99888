from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import cvl_pipeline as cvl
from cvl_pipeline.errors import InputError
from cvl_pipeline.kedro.parameters import DataParameters
from cvl_pipeline.paths import expanded
from cvl_pipeline.sources.d4rl import D4RL
from cvl_pipeline.sources.files import Files
from cvl_pipeline.sources.minari import Minari, load_minari
from cvl_pipeline.sources.minari_writer import save_minari
from cvl_pipeline.testing.builders import make_rewards, make_transitions


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_tilde_is_the_home_folder(tmp_path: Path) -> None:
    assert expanded("~/log.csv") == tmp_path / "log.csv"
    assert expanded("~root/x").is_absolute()
    assert expanded(Path("a/~/b")) == Path("a/~/b")


def test_the_home_of_nobody_is_refused_unless_a_file_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        InputError, match="~nobody-here/x: there is no home folder '~nobody-here'; write the whole path"
    ):
        expanded("~nobody-here/x")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-here").touch()
    assert expanded("~nobody-here") == Path("~nobody-here")


def test_every_parameter_that_is_a_path_knows_the_tilde(tmp_path: Path) -> None:
    for parameters in (
        Files.Parameters(path="~/a.csv"),
        D4RL.Parameters(path="~/a.csv"),
        Minari.Parameters(path="~/a.csv"),
    ):
        assert parameters.path == str(tmp_path / "a.csv")
    assert Files.Parameters(path="~/a.csv").folder == "a.csv"
    data = DataParameters(root="~/data/", cache="~")
    assert (data.root, data.cache) == (str(tmp_path / "data"), str(tmp_path))
    assert DataParameters(root="s3://bucket/~/x").root == "s3://bucket/~/x"
    with pytest.raises(ValidationError, match="no home folder '~nobody-here'"):
        Files.Parameters(path="~nobody-here/a.csv")
    with pytest.raises(ValidationError, match="null character"):
        Files.Parameters(path="a\0.csv")


def test_paths_of_the_python_interface_know_the_tilde(tmp_path: Path) -> None:
    data = make_transitions([4, 4], [False, True])
    cvl.save(data, "~/data.safetensors")
    assert (tmp_path / "data.safetensors").is_file()
    assert len(cvl.load("~/data.safetensors")) == 8
    save_minari(data, make_rewards(data), "mine/x-v0", root=Path("~/minari"))
    assert (tmp_path / "minari/mine/x-v0").is_dir()
    assert len(load_minari("mine/x-v0", Path("~/minari"))[0]) == 8
    np.savez(tmp_path / "log.npz", observations=np.zeros((4, 1)), actions=np.zeros((4, 1)), rewards=np.zeros(4),
             terminated=np.array([0, 1, 0, 1]))  # fmt: skip
    assert len(cvl.episodes_from_file("~/log.npz", truncated=None).transitions) == 4
