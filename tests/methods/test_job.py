from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cvl_pipeline.io.artifacts import load_artifact, save_artifact
from cvl_pipeline.methods.cvl import CVL
from cvl_pipeline.methods.job import PolicyJob
from cvl_pipeline.testing.builders import policy_parameters
from cvl_pipeline.training.launch import JOBS
from tests.methods.toys import Imitation, make_episodes, method_parameters
from tests.objectives.toys import network_q

OWN = f"{Imitation.__module__}:Imitation"


def _job(method: str) -> PolicyJob:
    data = make_episodes()
    if method == "bc":
        return PolicyJob(data.without_rewards(), method_parameters(method), 3)
    if method == "cvl":
        extraction = policy_parameters(objective="ddpg_bc", alpha=2.0)
        return PolicyJob(data, CVL.Parameters(extraction=extraction), 3, network_q(data.transitions))
    return PolicyJob(data, method_parameters(method), 3)


def _through_files(job: PolicyJob, folder: Any) -> PolicyJob:
    """Rebuild a job as another process does."""
    artifacts = {}
    for kind, value in job.artifacts().items():
        save_artifact(folder / f"{kind}.safetensors", kind, value)
        artifacts[kind] = load_artifact(folder / f"{kind}.safetensors", kind)
    return PolicyJob.from_parts(artifacts, json.loads(json.dumps(job.settings())))


EPISODES = {"transitions", "split", "normalisation"}


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        ("bc", EPISODES),
        ("iql", EPISODES | {"rewards"}),
        ("cvl", EPISODES | {"rewards", "critic", "readout"}),
        (OWN, EPISODES | {"rewards"}),
    ],
)
def test_job_is_rebuilt_from_its_parts(tmp_path: Any, method: str, kinds: set[str]) -> None:
    job = _job(method)
    assert JOBS[job.name] == f"{PolicyJob.__module__}:PolicyJob"
    assert set(job.artifacts()) == kinds
    again = _through_files(job, tmp_path)
    assert again.parameters == job.parameters
    assert type(again.parameters) is type(job.parameters)
    assert again.seed == 3
    assert again.training == job.training
    assert (again.values is None) == (method != "cvl")
    assert (again.data.rewards is None) == (method == "bc")


def test_rebuilt_job_trains_the_same_policy(tmp_path: Any) -> None:
    job = _job("cvl")
    policy, history = job.run(None, None, None)
    again, same = _through_files(job, tmp_path).run(None, None, None)
    assert history.equals(same)
    torch.testing.assert_close(again.state_dict(), policy.state_dict(), rtol=0, atol=0)


def test_training_of_cvl_is_that_of_its_objective() -> None:
    extraction = policy_parameters(training={"steps": 5})
    job = PolicyJob(make_episodes(), CVL.Parameters(extraction=extraction), 0)
    assert job.training is extraction.training
    parameters = method_parameters("bc", {"steps": 6})
    assert PolicyJob(make_episodes(), parameters, 0).training is parameters.training
