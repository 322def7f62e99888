from __future__ import annotations

import json
import site
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cvl_pipeline.errors import TERMINATED, InputError, missing_extra
from cvl_pipeline.imports import library_folders, package_file, user_class, user_code, user_function
from cvl_pipeline.methods.base import METHODS
from cvl_pipeline.networks.encoder import Encoder
from cvl_pipeline.networks.parameters import ENCODERS
from cvl_pipeline.objectives.base import OBJECTIVES
from cvl_pipeline.schema import Registry
from cvl_pipeline.sources.base import SOURCES


@pytest.mark.parametrize(
    "source", ["no_such_module:f", "tests.no_such_module:f", ":f", ".relative:f", "math:"]
)
def test_a_module_that_cannot_be_imported_is_named(source: str) -> None:
    with pytest.raises(InputError, match=r"^reward\.source '.*' cannot be imported") as caught:
        user_function("reward.source", source)
    assert f"'{source}'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("broken_syntax", "def f(:", "SyntaxError"),
        ("broken_import", "1 / 0", r"ZeroDivisionError: .* at .*broken_import\.py:1\)"),
        ("leaving_import", "import sys\nsys.exit(0)", r"SystemExit: 0 at .*leaving_import\.py:2\)"),
        ("silent_import", "raise SystemExit", r"SystemExit: .*silent_import\.py:1\)"),
    ],
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


@pytest.mark.parametrize("name", ["own:leaving", "own:failing"])
def test_an_error_of_the_users_code_has_its_place_in_one_line(name: str) -> None:
    function = user_function("reward.source", f"tests.{name}")
    with (
        pytest.raises(
            InputError, match=rf"^tests\.{name} (ended Python|failed) at .*own\.py:\d+ \("
        ) as caught,
        user_code(),
    ):
        function()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [InputError("mine"), SystemExit(TERMINATED), KeyboardInterrupt()])
def test_what_is_no_mistake_in_the_users_code_is_passed_on(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, user_code():
        raise error
    assert caught.value is error


def test_a_defect_of_this_package_is_passed_on_though_the_user_calls_it() -> None:
    with pytest.raises(AttributeError), user_code():
        missing_extra("x", None)  # type: ignore[arg-type]


def test_an_error_of_a_library_counts_for_the_code_that_called_it() -> None:
    with pytest.raises(InputError, match=r"failed at .*test_imports\.py:\d+ \(JSONDecodeError"), user_code():
        json.loads("{")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Unparametrised",
            "its Parameters must extend ObjectiveParameters, not <class 'dict'>",
        ),
        ("Misparametrised", "its Parameters must extend ObjectiveParameters, not <class"),
        ("nothing", "is not a subclass of"),
    ],
)
def test_a_class_without_a_model_of_its_settings_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        OBJECTIVES.parameters(f"tests.own:{name}")
    assert f"'tests.own:{name}'" in str(caught.value)


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (OBJECTIVES, "LossTakesNothing", "loss must take (self, drawn), not (self)"),
        (SOURCES, "TakesNoSeed", "load must take (self, seed, workers), not (self)"),
        (SOURCES, "TakesNoSteps", "make_environment must take (self, episode_steps=None), not (self)"),
        (SOURCES, "Rewarded", "has_rewards must be a property, not a method; put @property above it"),
        (
            METHODS,
            "TakesData",
            "train must take (self, data, seed, *, values=None, checkpoints=None, logs=None), not (self, data)",
        ),
        (ENCODERS, "TakesShape", "__init__ must take (self, parameters, shape), not (self, shape)"),
    ],
)
def test_a_method_with_other_arguments_is_named_before_it_is_called(
    registry: Registry[Any], name: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        registry[f"tests.own:{name}"]
    assert str(caught.value) == f"{registry.kind} 'tests.own:{name}': {message}"


def test_a_method_without_a_title_is_named() -> None:
    with pytest.raises(InputError, match=r"^method 'tests\.own:NoTitle' does not define title, as its base"):
        METHODS["tests.own:NoTitle"]


@pytest.mark.parametrize(("name", "hint"), [("MyAWRR", "; did you mean MyAWR?"), ("Qqqq", ""), ("", "")])
def test_a_misspelt_name_is_compared_with_those_of_its_module(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        user_function("objective", f"tests.own:{name}")
    message = f"objective 'tests.own:{name}' cannot be imported: module 'tests.own' has no '{name}'{hint}"
    assert str(caught.value) == message


def test_folders_of_libraries_are_those_of_installed_packages_not_the_whole_prefix() -> None:
    assert Path(site.getusersitepackages()) in library_folders()
    assert Path(torch.__file__).parents[1] in library_folders()
    assert not {Path(sys.prefix), Path(sys.base_prefix)} & library_folders()  # /usr may hold the user's code
