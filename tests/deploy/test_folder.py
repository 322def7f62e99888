from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cvl_pipeline.deploy.folder import check_no_other_files, write_folder
from cvl_pipeline.deploy.runner import CONTRACT, PolicyError, load_policy
from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location
from tests.deploy import models
from tests.s3 import Bucket

STATE = [0.25, 0.5, 0.0]


def _files(folder: Path) -> dict[str, bytes]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_folder_at_a_url_is_whole_or_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _files(models.write_folder(tmp_path / "1", models.linear(), value=models.sum_of_action()))
    second = _files(models.write_folder(tmp_path / "2", models.square_root()))
    url = f"{bucket.url}/cvl_exported"
    contract = Location(f"{url}/{CONTRACT}", bucket.options, tmp_path / "cache")
    downloads = iter(tmp_path / f"copy{number}" for number in range(4))

    def download() -> Path:
        place = next(downloads)
        bucket.files.get(f"{url}/", str(place), recursive=True)
        return place

    write_folder(contract, first)
    copy = download()
    assert _files(copy) == first
    assert load_policy(copy).select_action(STATE).tolist() == [0.25, 0.5]

    publish: Callable[[Location], None] = Location.publish
    order: list[str] = []

    def cut_off(place: Location) -> None:
        order.append(place.filepath.removeprefix(f"{url}/"))
        if len(order) == len(second):
            raise InputError("the network is gone")
        publish(place)

    with monkeypatch.context() as patch:
        patch.setattr(Location, "publish", cut_off)
        with pytest.raises(InputError, match="the network is gone"):
            write_folder(contract, second)
    assert order[-1] == CONTRACT
    with pytest.raises(PolicyError, match="was changed: its SHA-256"):
        load_policy(download())

    write_folder(contract, second)
    copy = download()
    assert load_policy(copy).select_action(STATE)[0] == 0.5
    assert _files(copy) == second


def test_a_folder_with_other_files_is_no_place_for_an_export(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    contract = folder / CONTRACT
    check_no_other_files(contract)  # there is no folder
    folder.mkdir()
    (folder / ".git").mkdir()
    check_no_other_files(contract)
    (folder / "README.md").write_text("my notes")
    words = (
        r"lab has files of its own, such as README\.md; give a new folder, .* killed has left may be deleted$"
    )
    with pytest.raises(InputError, match=words):
        check_no_other_files(contract)
    for content in ("", "[]", '{"policy": "mine"}', '{"files": ["mine"]}'):
        contract.write_text(content)
        with pytest.raises(InputError, match=words):
            check_no_other_files(contract)
    with pytest.raises(InputError, match=r"README\.md is a file, not a folder; give another one"):
        check_no_other_files(folder / "README.md" / CONTRACT)
    (folder / "A\nB").write_text("")
    with pytest.raises(InputError, match="such as A B; "):
        check_no_other_files(contract)


def test_the_first_export_of_a_pipeline_that_was_killed_is_repeated(tmp_path: Path) -> None:
    files = _files(models.write_folder(tmp_path / "1", models.linear()))
    folder = tmp_path / "cvl_exported"
    (folder / "policy/1").mkdir(parents=True)
    (folder / "policy/1/policy.onnx").write_bytes(b"half")
    contract = folder / CONTRACT
    with pytest.raises(InputError, match="such as policy; give a new folder"):
        check_no_other_files(contract)  # which the pipeline does not ask
    write_folder(Location(str(contract)), files)
    assert _files(folder) == files
    check_no_other_files(contract)
