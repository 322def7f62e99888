from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvl_pipeline.errors import InputError
from cvl_pipeline.io.location import Location, is_url
from cvl_pipeline.testing.builders import names_in
from tests.s3 import SECRET, Bucket


@pytest.fixture(params=["s3", "memory"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A file that is not there yet, at a URL of an object store, or of a file system that shows parts."""
    if request.param == "s3":
        bucket: Bucket = request.getfixturevalue("bucket")
        return Location(f"{bucket.url}/folder/x.bin", bucket.options, tmp_path / "cache")
    # fsspec has one memory for the whole process.
    return Location(f"memory://{tmp_path.name}/folder/x.bin", {}, tmp_path / "cache")


def _elsewhere(there: Location) -> Location:
    """The same file, seen from another machine."""
    return Location(there.filepath, there.options, there.cache.with_name("another cache"))


def _publish(location: Location, content: bytes) -> None:
    location.path.parent.mkdir(parents=True, exist_ok=True)
    location.path.write_bytes(content)
    location.publish()


def _downloads(location: Location, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is downloaded from now on."""
    system, found = location._system, []
    given = system.get_file

    def get_file(remote: str, *arguments: Any, **options: Any) -> Any:
        found.append(remote)
        return given(remote, *arguments, **options)

    monkeypatch.setattr(system, "get_file", get_file)
    return found


def test_a_local_path_needs_no_copy(tmp_path: Path) -> None:
    location = Location(str(tmp_path / "x.bin"))
    assert not location.is_remote
    assert location.path == tmp_path / "x.bin"
    assert not location.exists()
    location.path.write_bytes(b"whole")
    location.fetch()
    location.publish()
    assert location.exists()
    assert location.sibling("y").path == tmp_path / "y"
    assert names_in(tmp_path) == ["x.bin"]


def test_a_published_file_is_fetched_once(there: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not there.exists()
    _publish(there, b"whole")
    assert there.exists()
    other = _elsewhere(there)
    downloads = _downloads(other, monkeypatch)
    for _ in range(3):
        other.fetch()
        there.fetch()
    assert len(downloads) == 1
    assert other.path.read_bytes() == there.path.read_bytes() == b"whole"
    # Of a file that is being written nobody sees a part, and nothing of it stays.
    assert [Path(name).name for name in there._system.find(there._system._parent(there._remote))] == ["x.bin"]


def test_a_file_that_another_machine_publishes_replaces_the_copy(there: Location) -> None:
    _publish(there, b"of the one")
    other = _elsewhere(there)
    other.fetch()
    _publish(other, b"of the two")  # as long
    there.fetch()
    assert there.path.read_bytes() == b"of the two"


@pytest.mark.parametrize("content", [b"wholf", b"whol", b"", None])
def test_a_damaged_copy_is_fetched_again(there: Location, content: bytes | None) -> None:
    _publish(there, b"whole")
    # Also what a run has made that was killed before it could publish it.
    if content is None:
        there.path.unlink()
    else:
        there.path.write_bytes(content)
    there.fetch()
    assert there.path.read_bytes() == b"whole"


@pytest.mark.parametrize("note", ["", "[]", "null", '{"a": 1}', None])
def test_a_copy_whose_note_is_lost_is_fetched_again(
    there: Location, note: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(there, b"whole")
    if note is None:
        there._notes.unlink()
    else:
        there._notes.write_text(note)
    downloads = _downloads(there, monkeypatch)
    there.fetch()
    there.fetch()
    assert len(downloads) == 1
    assert there.path.read_bytes() == b"whole"


def test_a_copy_is_fetched_again_on_demand(there: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(there, b"whole")
    downloads = _downloads(there, monkeypatch)
    there.fetch(force=True)
    assert len(downloads) == 1


@pytest.mark.parametrize(
    "times",
    [
        lambda n: {"modify": f"2026010100000{n}"},  # FTP
        lambda n: {"modificationTime": n},  # WebHDFS
        lambda n: {},
    ],
    ids=["ftp", "webhdfs", "size"],
)
def test_a_changed_file_of_the_same_size_is_fetched_from_any_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Any
) -> None:
    there = Location(f"memory://{tmp_path.name}/x.bin", {}, tmp_path / "cache")
    info, version = there._system.info, 1
    monkeypatch.setattr(there._system, "info", lambda path: {**info(path), "created": None, **times(version)})
    _publish(there, b"older")
    downloads = _downloads(there, monkeypatch)
    there.fetch()
    there.fetch()
    assert len(downloads) == (0 if times(1) else 2)
    there._system.pipe_file(there._remote, b"newer")
    version = 2
    there.fetch()
    assert there.path.read_bytes() == b"newer"


def test_the_copy_of_a_deleted_file_is_deleted(there: Location) -> None:
    _publish(there, b"whole")
    there.remove()
    there.fetch()
    assert not there.path.exists()
    assert not there.exists()


def test_a_folder_is_no_file(there: Location) -> None:
    _publish(there, b"whole")
    assert not Location(there.filepath.rpartition("/")[0], there.options, there.cache).exists()


def test_a_download_that_fails_leaves_the_copy_as_it_was(
    there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(there, b"whole")
    other = _elsewhere(there)
    _publish(other, b"other")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("the line is\ndead")

    monkeypatch.setattr(there._system, "get_file", fail)
    with pytest.raises(InputError) as caught:
        there.fetch()
    assert str(caught.value).startswith(f"cannot read {there.filepath}: ConnectionError: the line is dead;")
    assert there.path.read_bytes() == b"whole"
    assert names_in(there.path.parent) == [there._notes.name, "x.bin"]
    monkeypatch.undo()
    there.fetch()
    assert there.path.read_bytes() == b"other"


def test_a_file_that_cannot_be_published_is_kept_under_another_name(
    there: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(there, b"older")

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(f"key {SECRET} may not write")

    monkeypatch.setattr(there._system, "put_file", fail)
    there.path.write_bytes(b"newer")
    with pytest.raises(InputError) as caught:
        there.publish()
    monkeypatch.undo()
    kept = there.path.with_name(".unpublished-x.bin")
    assert f"cannot write {there.filepath}: PermissionError" in str(caught.value)
    assert str(caught.value).endswith(f"; the new file is stored as {kept}")
    assert (SECRET in str(caught.value)) == (not there.options)
    assert kept.read_bytes() == b"newer"
    there.fetch()
    assert there.path.read_bytes() == b"older"


def test_small_files_are_made_read_changed_and_deleted_without_a_copy(there: Location) -> None:
    assert there.read() is None
    assert there.create("mine")
    assert not there.create("yours")
    assert there.read() == "mine"
    there.write("mine still")
    assert there.read() == "mine still"
    there.remove()
    there.remove()
    assert there.read() is None
    assert not there.cache.exists()


def test_the_file_system_is_asked_every_time(there: Location) -> None:
    assert there.identity() is None
    _publish(_elsewhere(there), b"whole")
    first = there.identity()
    assert first is not None
    assert first[0] == "5"
    _publish(_elsewhere(there), b"other")
    assert there.identity() not in (None, first)


@pytest.mark.parametrize(
    ("address", "options", "words", "verbs"),
    [
        ("s3://nowhere-at-all/x", {}, "bucket does not exist", ["write"]),  # there is nothing to read in it
        ("s3://nowhere-at-all/x", {"endpoint_url": "http://127.0.0.1:9"}, "127.0.0.1:9", ["read", "write"]),
    ],
)
def test_an_unreachable_server_is_reported_in_one_line_without_secrets(
    bucket: Bucket, address: str, options: dict[str, Any], words: str, verbs: list[str], tmp_path: Path
) -> None:
    retries = {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1}}
    location = Location(address, {**bucket.options, **retries, **options}, tmp_path)
    for verb in verbs:
        with pytest.raises(InputError) as caught:
            location.fetch() if verb == "read" else _publish(location, b"")
        message = str(caught.value)
        assert message.startswith(f"cannot {verb} {address}: ")
        assert words in message
        assert "entry of credentials.yml that data.credentials names" in message
        assert "\n" not in message
        assert SECRET not in message


def test_an_unknown_protocol_or_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^s4://b/x: .*Protocol not known: s4"):
        Location("s4://b/x", {}, tmp_path).fetch()
    with pytest.raises(InputError, match=r"^cannot read s3://b/x: .*colour") as caught:
        Location("s3://b/x", {"secret": SECRET, "client_kwargs": {"colour": SECRET}}, tmp_path).fetch()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_a_missing_library_is_reported_with_its_extra(
    protocol: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Install it") from ModuleNotFoundError("No module named 'it'", name="it")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    with pytest.raises(InputError, match=rf"\[{extra}\]"):
        Location(f"{protocol}://b/x", {}, tmp_path).exists()


def test_a_secret_is_masked_where_it_is_a_word(tmp_path: Path) -> None:
    location = Location("s3://b/x", {"key": "k", "secret": "a+b", "anon": False}, tmp_path)
    assert location._masked("key k of bucket: a+b, False") == "key *** of bucket: ***, False"
    assert "a+b" not in repr(location)


@given(
    st.from_regex(r"[a-z0-9][a-z0-9.\-]{1,8}", fullmatch=True),
    st.lists(
        st.text(min_size=1, max_size=4).filter(lambda part: part != ".." and not set(part) & set("/\0")),
        min_size=1,
    ),
)
def test_copies_have_separate_folders_in_the_cache(bucket: str, names: list[str]) -> None:
    parts = [bucket, *names]
    address = "s3://" + "/".join(parts)
    location = Location(address, {}, Path("cache"))
    assert is_url(address)
    assert str(location.path) == str(Path("cache", "s3", *parts))
    assert location.path != Location(address.replace("s3", "gs", 1), {}, Path("cache")).path


def test_the_copy_of_a_url_without_a_bucket_is_in_the_cache_too() -> None:
    assert Location("s3:///etc/x", {}, Path("cache")).path == Path("cache/s3/etc/x")


def test_a_url_with_a_password_is_refused_because_it_would_name_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sftp://me:\*\*\*@host/x: .* data\.credentials"):
        Location("sftp://me:S3CR3T@host/x", cache=tmp_path)
