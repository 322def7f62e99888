"""The examples of docs/guides: what they do, and that the guides show their code as it is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.baseline_return_weighted import ReturnWeightedBC
from examples.encoder_fourier import FourierFeatures
from examples.source_pendulum import Pendulum

from cvl_pipeline import api
from cvl_pipeline.environments.collection import episode_seeds
from cvl_pipeline.errors import InputError
from cvl_pipeline.networks.actor import make_actor
from cvl_pipeline.networks.parameters import ENCODERS
from cvl_pipeline.objectives.training import PolicyExtraction, train_policy
from cvl_pipeline.parameters import StageParameters
from cvl_pipeline.schema import nested, validated
from cvl_pipeline.sources.steps import Steps
from cvl_pipeline.testing.builders import make_data, make_rewards, make_transitions, policy_parameters
from tests.objectives.toys import LinearCritic, q_of
from tests.project import PROJECT

GUIDES = sorted((PROJECT / "docs/guides").glob("*.md"))
EXAMPLE_OF = {
    "add-a-baseline": "baseline_return_weighted",
    "add-a-source": "source_pendulum",
    "add-an-encoder": "encoder_fourier",
    "add-an-objective": "objective_filtered_bc",
}
TRAINING = {"steps": 8, "batch_size": 16, "validation_interval": 4, "accelerator": "cpu", "loggers": ()}


def _returns(transitions: Any, rewards: Any) -> torch.Tensor:
    episode = transitions.episode_of(torch.arange(len(transitions)))
    return torch.zeros(transitions.episodes).index_add(0, episode, rewards.rewards)


# The objective


def test_filtered_bc_clones_better_actions_only() -> None:
    data = make_data(make_transitions([50] * 6, [False] * 6), train=4)
    parameters = policy_parameters(
        objective="examples.objective_filtered_bc:FilteredBC", state_value={"actions": 64}
    )
    q = q_of(LinearCritic(1.0, 2.0))  # Q increases with the first dimension of the action
    module = PolicyExtraction(data, parameters, 0, q)
    module.on_fit_start()
    actions = data.transitions.actions[:200, 0]  # of the training episodes
    for chosen, share in ((actions > 0.3, 1.0), (actions < -0.3, 0.0)):
        loss, metrics = module.objective.loss(chosen.nonzero().squeeze(-1))
        assert metrics["share_cloned"] == share
        assert (loss != 0.0) == (share > 0.0)


def test_filtered_bc_threshold_is_in_standard_deviations() -> None:
    data = make_data(make_transitions([50] * 6, [False] * 6), train=4)
    shares = []
    for threshold in (-100.0, 0.0, 1.0, 100.0):
        name = "examples.objective_filtered_bc:FilteredBC"
        module = PolicyExtraction(
            data, policy_parameters(objective=name, threshold=threshold), 0, q_of(LinearCritic(0.0, 2.0))
        )
        module.on_fit_start()
        shares.append(float(module.objective.loss(torch.arange(200))[1]["share_cloned"]))
    assert shares[0] == 1.0
    assert 0.4 < shares[1] < 0.6
    assert 0.1 < shares[2] < 0.3
    assert shares[3] == 0.0


# The source


def _pendulum(**settings: Any) -> Pendulum:
    return Pendulum(Pendulum.Parameters(source="examples.source_pendulum:Pendulum", **settings))


def test_pendulum_source_replays_in_its_environment() -> None:
    transitions, rewards = _pendulum(episodes=3, episode_steps=20).load(seed=5, workers=None)
    assert transitions.lengths.tolist() == [20, 20, 20]
    assert not rewards.reports_success
    environment = _pendulum(episodes=3, episode_steps=20).make_environment()()
    for episode, seed in enumerate(episode_seeds(5, "collection", 3)):
        observation, _ = environment.reset(seed=seed)
        rows = range(20 * episode, 20 * (episode + 1))
        for row in rows:
            np.testing.assert_array_equal(transitions.observations[row + episode], observation)
            observation, reward, *_ = environment.step(transitions.actions[row].numpy())
            assert float(rewards.rewards[row]) == pytest.approx(float(reward))


def test_pendulum_source_is_reproducible_and_of_mixed_quality() -> None:
    source = _pendulum(episodes=20, episode_steps=100)
    (transitions, rewards), (again, _), (other, _) = (source.load(seed, None) for seed in (0, 0, 1))
    assert torch.equal(transitions.observations, again.observations)
    assert not torch.equal(transitions.observations, other.observations)
    returns = _returns(transitions, rewards)
    assert returns.max() > -200.0
    assert returns.min() < -500.0


def test_pendulum_source_passes_gravity_to_the_environment() -> None:
    light, heavy = (_pendulum(gravity=gravity).make_environment()() for gravity in (0.5, 10.0))
    arrivals = []
    for environment in (light, heavy):
        environment.reset(seed=1)
        arrivals.append(environment.step(np.zeros(1))[0])
    assert abs(arrivals[0][2]) < abs(arrivals[1][2])


# The encoder


def _encoder(**settings: Any) -> FourierFeatures:
    torch.manual_seed(0)
    parameters = FourierFeatures.Parameters(name="examples.encoder_fourier:FourierFeatures", **settings)
    return FourierFeatures(parameters, (3,))


def test_fourier_features_approximate_a_gaussian_kernel() -> None:
    encoder = _encoder(frequencies=20_000, bandwidth=2.0)
    one, other = torch.randn(2, 5, 3)
    features = encoder(one)[:, 3:], encoder(other)[:, 3:]
    kernel = (-(one - other).square().sum(-1) / (2.0 * 2.0**2)).exp()
    torch.testing.assert_close((features[0] * features[1]).sum(-1), kernel, atol=0.03, rtol=0.0)


def test_fourier_features_keep_the_observation_and_train_nothing() -> None:
    encoder = _encoder(frequencies=4)
    observations = torch.randn(2, 3)
    assert encoder.features == 11
    assert encoder(observations).shape == (2, 11)
    assert torch.equal(encoder(observations)[:, :3], observations)
    assert list(encoder.parameters()) == []


def test_policy_with_fourier_features_survives_storage(tmp_path: Path) -> None:
    data = make_data(make_transitions([5] * 4, [False] * 4), train=3)
    name = {"name": "examples.encoder_fourier:FourierFeatures", "frequencies": 4}
    actor = make_actor(data.transitions, data.normalisation, (8,), ENCODERS.validate(name).model_dump())
    api.save(actor, tmp_path / "policy.safetensors")
    states = data.transitions.states()
    assert torch.equal(api.load(tmp_path / "policy.safetensors")(states), actor(states))


def test_stored_policy_whose_encoder_is_not_on_the_path_is_refused(tmp_path: Path) -> None:
    data = make_data(make_transitions([5] * 4, [False] * 4), train=3)
    actor = make_actor(data.transitions, data.normalisation, (8,), {"name": "identity"})
    actor.shape.encoder["name"] = "nowhere:FourierFeatures"
    api.save(actor, tmp_path / "policy.safetensors")
    with pytest.raises(InputError, match=r"policy\.safetensors: encoder 'nowhere:Fou.*on the Python path\?$"):
        api.load(tmp_path / "policy.safetensors")


def test_fourier_features_refuse_images() -> None:
    name = "examples.encoder_fourier:FourierFeatures"
    with pytest.raises(InputError, match=f"'{name}' takes vectors"):
        FourierFeatures(FourierFeatures.Parameters(name=name), (8, 8, 3))


# The baseline


def test_return_weighted_bc_prefers_actions_of_good_episodes() -> None:
    transitions = make_transitions([10, 20, 10, 20, 10], [False] * 5)
    rewards = make_rewards(transitions)
    data = make_data(transitions, train=4, rewards=rewards)
    name = "examples.baseline_return_weighted:ReturnWeightedLoss"
    module = PolicyExtraction(data, policy_parameters(objective=name, beta=2.0), 0)
    module.on_fit_start()
    episode = transitions.episode_of(torch.arange(60))
    weights = torch.stack(
        [module.objective.loss((episode == e).nonzero().squeeze(-1))[1]["weight_mean"] for e in range(4)]
    )
    assert float(weights.mean()) == pytest.approx(1.0)
    assert torch.equal(weights.argsort(), _returns(transitions, rewards)[:4].argsort())


def test_return_weighted_bc_with_beta_zero_is_behaviour_cloning() -> None:
    transitions = make_transitions([30] * 5, [False] * 5)
    data = make_data(transitions, train=4, rewards=make_rewards(transitions))
    name = "examples.baseline_return_weighted:ReturnWeightedBC"
    trained = api.train_method(data, name, beta=0.0, hidden=(8,), training=TRAINING)
    cloned = api.train_method(data, "bc", hidden=(8,), training=TRAINING)
    states = transitions.states()
    torch.testing.assert_close(trained.policy(states), cloned.policy(states))
    weighted = api.train_method(data, name, beta=3.0, hidden=(8,), training=TRAINING)
    assert not torch.allclose(weighted.policy(states), cloned.policy(states))


def test_return_weighted_bc_resumes_interrupted_training(tmp_path: Path) -> None:
    transitions = make_transitions([30] * 5, [False] * 5)
    data = make_data(transitions, train=4, rewards=make_rewards(transitions))
    method = ReturnWeightedBC(
        ReturnWeightedBC.Parameters(
            method="examples.baseline_return_weighted:ReturnWeightedBC", hidden=(8,), training=TRAINING
        )
    )
    once = method.train(data, 0)
    again = method.train(data, 0, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    assert torch.equal(once.policy(transitions.states()), again.policy(transitions.states()))
    assert (tmp_path / "logs/metrics.csv").exists()


# Choosing a class of your own


def test_objective_of_your_own_is_chosen_in_python_too() -> None:
    data = make_data(make_transitions([30] * 5, [False] * 5), train=4)
    q = q_of(LinearCritic(0.0, 2.0))
    name = "examples.objective_filtered_bc:FilteredBC"
    trained = api.extract_policy(
        q.critic, q.readout, data.with_rewards(make_rewards(data.transitions)), name, 3,
        threshold=0.5, hidden=(8,), training=TRAINING,
    )  # fmt: skip
    parameters = policy_parameters(objective=name, threshold=0.5, training=TRAINING)
    other = train_policy(data, parameters, 3, values=q)
    states = data.transitions.states()
    assert torch.equal(trained.policy(states), other.policy(states))
    assert "train/share_cloned" in trained.history


@pytest.mark.parametrize(
    ("field", "base"),
    [
        ("dataset.source", "cvl_pipeline.sources.base.Source"),
        ("contrastive_dynamics.encoder.name", "cvl_pipeline.networks.encoder.Encoder"),
        ("policy_extraction.objective", "cvl_pipeline.objectives.base.Objective"),
        ("baselines.mine.method", "cvl_pipeline.methods.base.Method"),
    ],
)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "nowhere:Mine",
            r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\); is the module",
        ),
        (
            "examples.encoder_fourier:Mine",
            r"cannot be imported: module 'examples\.encoder_fourier' has no 'Mine'",
        ),
        ("cvl_pipeline.errors:InputError", "is not a subclass of {base}"),
        ("cvl_pipeline.errors:one_line", "is not a subclass of {base}"),
        ("other", r"unknown .* 'other': known: .* \(or module:Class for one of your own\)"),
    ],
)
def test_wrong_class_is_refused_in_one_line(field: str, base: str, name: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(StageParameters, nested({field: name}))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"parameters: '{field}' is '{name}': ")
    assert re.search(reason.format(base=re.escape(base)), message), message


def test_wrong_encoder_of_policies_is_refused_as_bare_name_too() -> None:
    with pytest.raises(
        InputError, match=r"'policy_extraction\.encoder' is 'nowhere:Mine': encoder 'nowhere:"
    ):
        validated(StageParameters, {"policy_extraction": {"encoder": "nowhere:Mine"}})


def test_setting_of_your_own_is_checked_like_any_other() -> None:
    wrong = {"objective": "examples.objective_filtered_bc:FilteredBC", "treshold": 1.0}
    with pytest.raises(InputError, match=r"'policy_extraction\.treshold': did you mean 'threshold'\?"):
        validated(StageParameters, {"policy_extraction": wrong})


def test_baseline_by_bare_name_follows_policy_extraction() -> None:
    name = "examples.baseline_return_weighted:ReturnWeightedBC"
    values = {"policy_extraction": {"hidden": [8], "training": {"steps": 7}}, "baselines": {"mine": name}}
    mine = validated(StageParameters, values).baselines["mine"]
    assert (mine.method, mine.hidden, mine.training.steps, mine.beta) == (name, (8,), 7, 1.0)


# The guides


def _blocks(page: Path) -> list[str]:
    """Python code of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_every_guide_has_its_example() -> None:
    assert [guide.stem for guide in GUIDES] == sorted(EXAMPLE_OF)
    of_robots = set(re.findall(r"examples/(\w+)\.py", (PROJECT / "docs/deploy.md").read_text()))
    assert of_robots
    assert {*EXAMPLE_OF.values(), *of_robots} == {path.stem for path in (PROJECT / "examples").glob("*.py")}


def test_guide_of_sources_lists_every_field_of_steps() -> None:
    text = (PROJECT / "docs/guides/add-a-source.md").read_text()
    table = (
        text.partition("`Steps` has one row per step")[2]
        .partition("\n\n**")[0]
        .partition("\n\nAn episode")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [field.name for field in fields(Steps)]


def test_baseline_with_an_objective_of_your_own_follows_policy_extraction() -> None:
    extraction = {"objective": "examples.objective_filtered_bc:FilteredBC"}
    values = {
        "policy_extraction": {"hidden": [8], "training": {"steps": 7}},
        "baselines": {"filtered": {"method": "cvl", "extraction": extraction}},
    }
    filtered = validated(StageParameters, values).baselines["filtered"].extraction
    assert (filtered.hidden, filtered.training.steps, filtered.threshold) == ((8,), 7, 0.0)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: str(guide.stem))
def test_guide_shows_code_as_it_is(guide: Path) -> None:
    example = (PROJECT / "examples" / f"{EXAMPLE_OF[guide.stem]}.py").read_text()
    tests = Path(__file__).read_text()
    whole, *others = _blocks(guide)
    assert whole == example
    assert others, "a guide shows a test"
    for block in others:
        assert block in tests
