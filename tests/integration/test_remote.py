"""Data at a URL: the same results, reuse and errors as in a folder, from any machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cvl_pipeline.deploy.runner import load_policy, self_test
from tests.artifacts import with_flipped_bit
from tests.integration.conftest import DATASET, REUSE, FinishedRun, Forks, Project, copy_project
from tests.kedro.provenance.holders import lease_holder
from tests.s3 import SECRET, Bucket, make_bucket

CRITIC = f"06_models/{DATASET}/critic.safetensors"
LOCK = f".locks/{DATASET}.lock"


@dataclass(frozen=True)
class Remote:
    """A project with its data in a bucket."""

    project: Project
    bucket: Bucket
    output: str

    @property
    def parameters(self) -> tuple[str, str]:
        return "--params", f"data.root={self.bucket.url}/me,data.credentials=laboratory"

    @property
    def cache(self) -> Path:
        return self.project.root / "data/.cache"

    def contents(self) -> dict[str, bytes]:
        """Contents of every file of the data root except leases, by path."""
        return {
            name.removeprefix("me/"): self.bucket.files.cat_file(f"{self.bucket.url}/{name}")
            for name in self.bucket.names()
            if "/.locks/" not in name
        }

    def spoil(self, name: str) -> None:
        """Flip a bit."""
        address = f"{self.bucket.url}/me/{name}"
        self.bucket.files.pipe_file(address, with_flipped_bit(self.bucket.files.cat_file(address)))


def _project(root: Path, bucket: Bucket) -> Project:
    project = copy_project(root)
    (root / "conf/smoke/credentials.yml").write_text(json.dumps({"laboratory": bucket.options}))
    return project


@pytest.fixture(scope="module")
def whole(kedro: Forks, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Remote:
    """The project after one run. Tests must not change the bucket."""
    bucket = make_bucket(s3_endpoint)
    project = _project(tmp_path_factory.mktemp("remote"), bucket)
    remote = Remote(project, bucket, "")
    return Remote(project, bucket, kedro.kedro(project, "run", *remote.parameters))


@pytest.fixture
def remote(whole: Remote, s3_endpoint: str, tmp_path: Path) -> Remote:
    """Another machine with a copy of that bucket, which a test may damage."""
    bucket = make_bucket(s3_endpoint)
    bucket.files.copy(f"{whole.bucket.url}/me/", f"{bucket.url}/me/", recursive=True)
    assert len(bucket.names()) == len(whole.bucket.names())
    return Remote(_project(tmp_path / "other", bucket), bucket, "")


def test_a_run_writes_the_same_files_to_the_url_as_to_a_folder(whole: Remote, finished: FinishedRun) -> None:
    data = finished.project.root / "data"
    local = {
        path.relative_to(data).as_posix(): path.read_bytes()
        for path in data.rglob("*")
        if path.is_file() and not {"logs", ".locks"} & set(path.parts)
    }
    assert whole.contents() == local
    assert f"Metrics, tables and plots: {whole.bucket.url}/me/08_reporting/{DATASET}/" in whole.output
    assert SECRET not in whole.output
    # This machine has only the cache.
    assert [path.name for path in (whole.project.root / "data").iterdir()] == [".cache"]


def test_nothing_is_recreated_here_or_on_another_machine(kedro: Forks, whole: Remote, remote: Remote) -> None:
    for place in (whole, remote):
        assert "30 artifacts: 30 fresh" in kedro.kedro(
            place.project, "artifacts", "status", *place.parameters
        )
    before = remote.contents()
    assert "Nothing to run" in kedro.kedro(remote.project, *REUSE, *remote.parameters)
    assert remote.contents() == before


def test_damaged_or_deleted_artifacts_at_the_url_are_refused_or_recreated(
    kedro: Forks, remote: Remote
) -> None:
    before = remote.contents()
    # This machine then has a complete copy of the critic.
    extract = ("run", "--nodes", "policy_extraction.train_bc", *remote.parameters)
    kedro.kedro(remote.project, *extract)
    remote.spoil(CRITIC)
    output = kedro.kedro(remote.project, "run", "--pipelines", "value_readout", *remote.parameters, status=1)
    assert output.startswith(f"Error: {remote.bucket.url}/me/{CRITIC} is damaged")
    assert "\n" not in output.strip()
    # Damage that only the record reveals.
    metrics = f"{remote.bucket.url}/me/08_reporting/{DATASET}/metrics.json"
    content = remote.bucket.files.cat_file(metrics)
    remote.bucket.files.pipe_file(metrics, content.replace(b'"seed": 0', b'"seed": 1'))
    output = kedro.kedro(remote.project, "run", "--nodes", "evaluation.plot", *remote.parameters, status=1)
    assert output.startswith(f"Error: {metrics} is damaged (its content differs from the record)")
    (labels,) = [name for name in remote.contents() if name.endswith("/labels.safetensors")]
    remote.bucket.files.rm_file(f"{remote.bucket.url}/me/{labels}")
    status = kedro.kedro(remote.project, "artifacts", "status", *remote.parameters)
    assert "1 missing, 2 damaged" in status
    ran = kedro.run(remote.project, *REUSE, *remote.parameters)
    assert {"contrastive_dynamics.train", "value_readout.label"} <= ran
    assert not any(name.startswith("data_ingestion") for name in ran)
    assert remote.contents() == before


def test_a_damaged_copy_is_fetched_again(kedro: Forks, remote: Remote) -> None:
    readout = ("run", "--pipelines", "value_readout", *remote.parameters)
    kedro.kedro(remote.project, *readout)
    before = remote.contents()
    copies = [
        path for path in remote.cache.rglob("*") if path.suffix in (".safetensors", ".parquet", ".json")
    ]
    assert len(copies) > 10
    for copy in copies:  # notes and records too
        copy.write_bytes(copy.read_bytes()[:-1])
    kedro.kedro(remote.project, *readout)
    assert remote.contents() == before


def test_a_killed_run_is_continued_and_a_running_one_is_respected(kedro: Forks, remote: Remote) -> None:
    before = remote.contents()
    remote.bucket.files.rm(f"{remote.bucket.url}/me", recursive=True)
    kedro.kedro(remote.project, "run", *remote.parameters, status=137, die_at_record=[9])
    assert f"me/{LOCK}" in remote.bucket.names()
    ran = kedro.run(remote.project, *REUSE, *remote.parameters)
    assert "evaluation.plot" in ran
    assert "data_ingestion.ingest" not in ran
    assert remote.contents() == before
    assert f"me/{LOCK}" not in remote.bucket.names()
    address = f"{remote.bucket.url}/me/{LOCK}"
    with lease_holder(address, remote.bucket.options) as holder:
        output = kedro.kedro(remote.project, "run", *remote.parameters, status=1)
        assert output.startswith("Error: data of dataset 'reach-v3-smoke', seed 0, is in use by another run")
        assert f"process {holder.pid} on" in output
        assert "30 fresh" in kedro.kedro(remote.project, "artifacts", "status", *remote.parameters)


def test_a_policy_is_exported_to_the_url(kedro: Forks, remote: Remote, tmp_path: Path) -> None:
    assert kedro.run(remote.project, "run", "--pipelines", "export", *remote.parameters) == {
        "export.export_cvl"
    }
    folder = f"{remote.bucket.url}/me/06_models/{DATASET}/cvl_exported/"
    remote.bucket.files.get(folder, str(tmp_path / "copy"), recursive=True)
    assert self_test(tmp_path / "copy").startswith("4 actions as exported")
    contract = load_policy(tmp_path / "copy").contract
    assert all((tmp_path / "copy" / name).exists() for name in contract["files"])
    assert "Nothing to run" in kedro.kedro(
        remote.project, *REUSE, "--pipelines", "export", *remote.parameters
    )


@pytest.mark.parametrize(
    ("root", "credentials", "words"),
    [
        ("s3://nowhere-at-all", "laboratory", "cannot write s3://nowhere-at-all/.locks/"),
        (
            "s3://nowhere-at-all",
            "labratory",
            "'labratory', which is no entry of conf/base/credentials.yml or conf/smoke/credentials.yml",
        ),
        ("s4://laboratory", "laboratory", "Protocol not known: s4"),
    ],
)
def test_an_unreachable_url_stops_a_run_in_one_line(
    kedro: Forks, whole: Remote, root: str, credentials: str, words: str
) -> None:
    parameters = ("--params", f"data.root={root},data.credentials={credentials}")
    output = kedro.kedro(whole.project, "run", *parameters, status=1)
    assert output.startswith("Error: ")
    assert words in output
    assert "\n" not in output.strip()
    assert SECRET not in output


def test_a_folder_outside_of_the_project_holds_everything(
    kedro: Forks, finished: FinishedRun, whole: Remote, tmp_path: Path
) -> None:
    parameters = ("--params", f"data.root={tmp_path}/elsewhere")
    project = copy_project(tmp_path / "project")
    shutil.copytree(finished.project.root / "data", tmp_path / "elsewhere")
    assert kedro.plan(project, *parameters) == set()
    kedro.kedro(project, "run", "--pipelines", "contrastive_dynamics", *parameters)
    assert kedro.plan(project, *parameters) == set()
    assert not (project.root / "data").exists()


@pytest.mark.slow
def test_a_study_is_stored_locally_and_its_result_at_the_url(kedro: Forks, remote: Remote) -> None:
    tuning = f"{remote.parameters[1]},tuning.trials=2"
    kedro.kedro(remote.project, "run", "--pipelines", "tuning", "--params", tuning)
    found = [name for name in remote.contents() if "/tuning/" in name and not Path(name).name.startswith(".")]
    assert f"08_reporting/{DATASET.partition('/')[0]}/tuning/study/best_parameters.json" in found
    assert not any(name.startswith("06_models") for name in found)
    assert list(remote.cache.rglob("journal.log"))
    # Simulate another result from another machine.
    best = (
        f"{remote.bucket.url}/me/08_reporting/{DATASET.partition('/')[0]}/tuning/study/best_parameters.json"
    )
    found = json.loads(remote.bucket.files.cat_file(best)) | {
        "parameters": {"contrastive_dynamics.temperature": 0.7}
    }
    remote.bucket.files.pipe_file(best, json.dumps(found).encode())
    plan = kedro.plan(remote.project, "--params", f"{remote.parameters[1]},tuned=true")
    assert "contrastive_dynamics.train" in plan
    assert "data_ingestion.ingest" not in plan


def test_viz_shows_the_artifacts_at_the_url(kedro: Forks, remote: Remote) -> None:
    data = {"root": f"{remote.bucket.url}/me", "credentials": "laboratory"}
    (remote.project.root / "conf/smoke/parameters_data.yml").write_text(json.dumps({"data": data}))
    kedro.kedro(remote.project, "viz", "build", "--include-previews")
    build = remote.project.root / "build/api"
    assert any("success_rate" in path.read_text() for path in build.rglob("*") if path.is_file())
