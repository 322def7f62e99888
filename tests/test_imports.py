from __future__ import annotations

from pathlib import Path

import pytest

from cvl_pipeline.errors import InputError
from cvl_pipeline.imports import package_file, user_class, user_function
from cvl_pipeline.networks.encoder import Encoder


@pytest.mark.parametrize(
    "source", ["no_such_module:f", "tests.no_such_module:f", ":f", ".relative:f", "math:"]
)
def test_a_module_that_cannot_be_imported_is_named(source: str) -> None:
    with pytest.raises(InputError, match=r"^reward\.source '.*' cannot be imported") as caught:
        user_function("reward.source", source)
    assert f"'{source}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [("broken_syntax", "def f(:", "SyntaxError"), ("broken_import", "1 / 0", "ZeroDivisionError")],
)
def test_a_module_that_fails_on_import_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str, error: str
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=rf"^reward\.source '{name}:f' cannot be imported \({error}"):
        user_function("reward.source", f"{name}:f")


def test_a_packages_file_is_found_without_importing_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "fails_on_import"
    package.mkdir()
    (package / "__init__.py").write_text("1 / 0")
    (package / "data.txt").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert package_file("fails_on_import", "data.txt") == package / "data.txt"
    assert package_file("fails_on_import", "other.txt") is None
    assert package_file("no_such_package", "data.txt") is None


class Unfinished(Encoder):
    """An encoder of one's own that lacks its methods."""


def test_a_class_that_lacks_what_its_base_asks_for_is_named() -> None:
    with pytest.raises(InputError, match=r"^encoder '.*:Unfinished' does not define __init__, forward, as"):
        user_class("encoder", f"{__name__}:Unfinished", Encoder)  # type: ignore[type-abstract]
