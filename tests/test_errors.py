from __future__ import annotations

from cvl_pipeline.errors import InputError, causes, missing_extra, printable, unknown_name


def test_a_near_name_is_suggested() -> None:
    error = unknown_name("task", "reech-v3", ["push-v3", "reach-v3", "door-open-v3"])
    assert isinstance(error, InputError)
    assert str(error) == "unknown task 'reech-v3': did you mean reach-v3?"


def test_several_near_names_are_suggested() -> None:
    message = str(unknown_name("task", "door-v3", ["door-open-v3", "door-close-v3", "sweep-v3"]))
    assert message.startswith("unknown task 'door-v3': did you mean ")
    assert "door-open-v3" in message
    assert "door-close-v3" in message
    assert "sweep-v3" not in message


def test_without_a_near_name_all_are_listed() -> None:
    assert str(unknown_name("loss", "zzz", ["a", "b"])) == "unknown loss 'zzz': known: a, b"


def test_a_library_that_an_extra_brings_is_asked_for_by_the_extra() -> None:
    error = missing_extra("tuning", ModuleNotFoundError("No module named 'optuna'", name="optuna"))
    assert str(error).startswith("tuning needs optuna: pip install 'cvl-pipeline[tuning]'")


def test_what_would_steer_a_terminal_is_shown_instead() -> None:
    assert printable("x.json\nis \x1b[31mdamaged\u202e") == r"x.json is \x1b[31mdamaged\u202e"
    assert printable("ä 日本 – 3 %") == "ä 日本 – 3 %"


def test_causes_of_an_error_that_was_raised_again_come_to_an_end() -> None:
    first, second = OSError("the folder is gone"), ValueError("while closing")
    first.__context__, second.__context__ = second, first  # as a writer's thread leaves them
    assert list(causes(first)) == [first, second]
