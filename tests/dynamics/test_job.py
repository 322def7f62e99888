from __future__ import annotations

import json

import torch

from cvl_pipeline.dynamics.job import CriticJob
from cvl_pipeline.episodes.container import Rewards, Transitions
from cvl_pipeline.networks.critic import ContrastiveCritic
from cvl_pipeline.testing.builders import dynamics_parameters, make_data
from cvl_pipeline.training.launch import JOBS


def _job(transitions: Transitions, rewards: Rewards) -> CriticJob:
    parameters = dynamics_parameters(loss={"name": "infonce", "logsumexp_penalty": 0.5})
    return CriticJob(make_data(transitions, 4, rewards), parameters, 3)


def test_job_is_rebuilt_from_its_parts(transitions: Transitions, rewards: Rewards) -> None:
    job = _job(transitions, rewards)
    assert JOBS[job.name] == f"{CriticJob.__module__}:CriticJob"
    # Artifacts go through files, settings through JSON.
    again = CriticJob.from_parts(job.artifacts(), json.loads(json.dumps(job.settings())))
    assert again.parameters == job.parameters
    assert again.seed == 3
    assert again.training == job.parameters.training
    assert again.data.transitions is transitions


def test_other_processes_receive_no_rewards(transitions: Transitions, rewards: Rewards) -> None:
    job = _job(transitions, rewards)
    assert set(job.artifacts()) == {"transitions", "split", "normalisation"}
    assert CriticJob.from_parts(job.artifacts(), job.settings()).data.rewards is None


def test_run_trains_the_critic_in_this_process(transitions: Transitions, rewards: Rewards) -> None:
    job = _job(transitions, rewards)
    critic, history = job.run(None, None, None)
    again, same = CriticJob.from_parts(job.artifacts(), job.settings()).run(None, None, None)
    assert isinstance(critic, ContrastiveCritic)
    assert history.equals(same)
    torch.testing.assert_close(again.state_dict(), critic.state_dict(), rtol=0, atol=0)
