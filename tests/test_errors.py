from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import (
    InputError,
    causes,
    has_secret,
    masked,
    missing_extra,
    naming_what_to_lower,
    printable,
    unknown_name,
)


def test_a_near_name_is_suggested() -> None:
    error = unknown_name("task", "reech-v3", ["push-v3", "reach-v3", "door-open-v3"])
    assert isinstance(error, InputError)
    assert str(error) == "unknown task 'reech-v3': did you mean reach-v3?"
    assert str(unknown_name("method", "IQL", ["iql", "mopo"])) == "unknown method 'IQL': did you mean iql?"


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


SECRET_TEXT = st.text("abcXYZ019@:/.?#%$-_", min_size=6).map(lambda text: f"S3CR3T{text}S3CR3T")


@given(SECRET_TEXT, st.sampled_from(["s3", "postgresql+psycopg", "https"]))
def test_no_message_contains_the_password_of_a_url(secret: str, scheme: str) -> None:
    error = InputError(f"data.root '{scheme}://me:{secret}@host/folder' cannot be reached; check it")
    assert "S3CR3T" not in str(error)
    assert str(error).startswith(f"data.root '{scheme}://me:***@host/folder'")


@pytest.mark.parametrize(
    "option",
    ["password", "sslpassword", "secret", "X-Amz-Signature", "access_token", "sig", "AccountKey", "PWD"],
)
def test_no_message_contains_an_option_of_a_url_that_is_secret(option: str) -> None:
    text = f"cannot read https://host/file?version=2&{option}=S3CR3T&timeout=3; try again"
    assert masked(text) == text.replace("S3CR3T", "***")
    assert printable(text) == text.replace("S3CR3T", "***")


@pytest.mark.parametrize(
    "text", ["a@b.c: no", "s3://bucket/key=3", "http://127.0.0.1:5000/x", "a ? b=1 & key=2"]
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, bytearray])
@pytest.mark.parametrize("size", [10**15, 2**62])
def test_what_allocators_say_is_understood(allocate: Callable[[int], object], size: int) -> None:
    message = r"not enough memory .*; lower batch_size"
    with pytest.raises(InputError, match=message), naming_what_to_lower("batch_size"):
        allocate(size)


@pytest.mark.parametrize("url", ["https://S3CR3TS3CR3TS3CR3T@host/x", "https://host/x?auth=S3CR3T'S3CR3T"])
def test_tokens_and_quotes_are_masked_too(url: str) -> None:
    assert "S3CR3T" not in str(InputError(f"'{url}' cannot be read"))


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("s3://bucket/a:b@c", False), ("hdfs://node:8020/user/me@corp/data", False),
        ("abfs://a-long-container-name@account.dfs.core.windows.net/x", False), ("sftp://me@host/x", False),
        ("sftp://me:pw@host/x", True), ("sftp://me:p/w@host/x", True), ("sftp://me:p w@host/x", True),
        ("https://host/x?sig=1", True), ("https://0123456789abcdef0@host/x", True),
    ],
)  # fmt: skip
def test_urls_with_secrets_are_known(url: str, secret: bool) -> None:
    assert has_secret(url) == secret
