"""The critic's update of JaxGCRL: its own networks and losses, in the loop of ``jax_loop``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

from benchmarks.peers import jax_loop  # before jax, because it sets JAX's device

import jax  # isort: skip
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

JOB = jax_loop.JOB
CHUNK = 4
"""Steps per call; few, because they are slow."""


def part(name: str) -> ModuleType:
    """Import a module of its agent without the package, which would import simulators."""
    package = importlib.util.find_spec("jaxgcrl")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / f"agents/crl/{name}.py"
    spec = importlib.util.spec_from_file_location(f"jaxgcrl_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Train and report the time."""
    log = jax_loop.read_log()
    losses, networks = part("losses"), part("networks")
    observation, action = log["observations"].shape[1], log["actions"].shape[1]
    if len(set(JOB.hidden)) != 1:
        raise ValueError(f"hidden layers {JOB.hidden} differ in size; JaxGCRL needs equal sizes")
    encoder = networks.Encoder(
        repr_dim=JOB.representation, network_width=JOB.hidden[0], network_depth=len(JOB.hidden),
        skip_connections=0, use_relu=True, use_ln=True,
    )  # fmt: skip
    of_anchor, of_goal = jax.random.split(jax.random.key(0))
    critic = TrainState.create(
        apply_fn=None,
        params={
            "sa_encoder": encoder.init(of_anchor, jnp.ones((1, observation + action))),
            "g_encoder": encoder.init(of_goal, jnp.ones((1, observation))),
        },
        tx=optax.adam(JOB.learning_rate),
    )
    config = {
        "state_size": observation,
        "energy_fn": "dot",
        "contrastive_loss_fn": "sym_infonce",
        "logsumexp_penalty_coeff": 0.1,
    }
    encoders = {"sa_encoder": encoder, "g_encoder": encoder}

    def step(critic, log, segments):
        rows, anchors, reached = segments
        both = jnp.concatenate([log["observations"][rows], log["observations"][reached]], -1)
        batch = SimpleNamespace(observation=both, action=log["actions"][anchors])
        state = State(critic)
        state, metrics = losses.update_critic(config, encoders, batch, state, None)
        return state.critic_state, metrics["critic_loss"]

    train = jax_loop.loop(step, critic, jax_loop.segments, log, CHUNK)
    jax_loop.report(JOB, train, ["jaxgcrl", "jax", "flax"], jax_loop.device_memory)


class State:
    """The part of its training state that its update uses."""

    def __init__(self, critic_state: TrainState) -> None:
        """Store the critic."""
        self.critic_state = critic_state

    def replace(self, critic_state: TrainState) -> State:
        """Return a state with another critic."""
        return State(critic_state)


if __name__ == "__main__":
    main()
