"""The same arithmetic in plain JAX and optax, the fastest implementation without a framework.

One compiled program takes CHUNK gradient steps: it samples all their batches, then scans over them. The loss
takes one exponential per entry, as in this package. Nothing is measured, logged or saved.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise

from benchmarks.peers.harness import Train, clocked, given_job, report

JOB = given_job(sys.argv[1])
os.environ.setdefault("JAX_PLATFORMS", JOB.device)  # before jax is imported
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # so that its peak memory is what it needs

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

# By default, JAX multiplies in tf32 on GPUs that can.
jax.config.update("jax_default_matmul_precision", {"tf32": "tensorfloat32"}.get(JOB.precision, JOB.precision))
CHUNK = 64 if max(JOB.hidden) <= 512 else 8
"""Steps per call, enough to make the overhead of a call negligible."""
TOTAL = 100_000
"""Steps of the cosine schedule; this package uses the length of the run, at the same cost."""
Log = dict[str, jax.Array]


def read_log() -> Log:
    """Read the training episodes to the device, with tables for sampling segments.

    The distribution of segments is that of ``SegmentSampler`` for truncated episodes.
    """
    with np.load(JOB.log) as file:
        arrays = dict(file)
    starts = arrays["episode_starts"]
    lengths = np.diff(starts)
    shares = -np.expm1(np.arange(1, lengths.max() + 1) * np.log(JOB.discount))
    sums = np.cumsum(shares)
    mass = sums[lengths - 1]
    tables = {
        "ends": starts[1:].astype(np.int32),
        "episode_of": np.repeat(np.arange(len(lengths)), lengths).astype(np.int32),
        "shares": shares.astype(np.float32),
        "sums": sums.astype(np.float32),
        "mass": mass.astype(np.float32),
        "cumulative_mass": np.cumsum(mass).astype(np.float32),
    }
    names = ("observations", "actions", "advantages", "action_low", "action_high")
    statistics = ("observation_mean", "observation_std", "action_mean", "action_std")
    selection = {name: arrays[name] for name in (*names, *statistics)}
    return {name: jnp.asarray(value) for name, value in {**selection, **tables}.items()}


def segments(log: Log, key: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sample rows of the anchors, transitions and rows of the futures of a chunk of batches, (chunk, B) each."""
    batch, repeats = JOB.batch, JOB.per_episode
    of_episode, of_anchor, of_offset = jax.random.split(key, 3)
    cumulative = log["cumulative_mass"]
    place = jax.random.uniform(of_episode, (chunk, -(-batch // repeats))) * cumulative[-1]
    index = jnp.minimum(jnp.searchsorted(cumulative, place, side="right"), len(cumulative) - 1)
    episodes = jnp.repeat(index, repeats, axis=1)[:, :batch]
    left = log["mass"][episodes] * (1.0 - jax.random.uniform(of_anchor, (chunk, batch)))
    steps_left = jnp.minimum(jnp.searchsorted(log["sums"], left), len(log["sums"]) - 1) + 1
    share = log["shares"][steps_left - 1] * jax.random.uniform(of_offset, (chunk, batch))
    offsets = (jnp.log1p(-share) / np.log(JOB.discount)).astype(jnp.int32) + 1
    anchors = log["ends"][episodes] - steps_left
    rows = anchors + episodes
    return rows, anchors, rows + jnp.minimum(offsets, steps_left)


def transitions(log: Log, key: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Sample rows and indices of transitions uniformly, for a chunk of batches, (chunk, B) each."""
    anchors = jax.random.randint(key, (chunk, JOB.batch), 0, len(log["actions"]))
    return anchors + log["episode_of"][anchors], anchors


def mlp_init(generator: np.random.Generator, sizes: list[int]) -> list[dict[str, jax.Array]]:
    """Initialise layers as torch does."""
    layers = []
    for inputs, outputs in pairwise(sizes):
        bound = inputs**-0.5
        layer = {
            "w": jnp.asarray(generator.uniform(-bound, bound, (inputs, outputs)), jnp.float32),
            "b": jnp.asarray(generator.uniform(-bound, bound, outputs), jnp.float32),
        }
        if len(layers) < len(sizes) - 2:
            layer |= {"scale": jnp.ones(outputs), "shift": jnp.zeros(outputs)}
        layers.append(layer)
    return layers


def mlp(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Linear layers with LayerNorm and ReLU between them."""
    for layer in layers:
        x = x @ layer["w"] + layer["b"]
        if "scale" in layer:
            centred = x - x.mean(-1, keepdims=True)
            deviation = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
            x = jax.nn.relu(centred * deviation * layer["scale"] + layer["shift"])
    return x


def unit(x: jax.Array) -> jax.Array:
    """Scale to unit length."""
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-24)


def states(log: Log, rows: jax.Array) -> jax.Array:
    """Read standardised observations."""
    return (log["observations"][rows] - log["observation_mean"]) / log["observation_std"]


def critic_weights(log: Log):
    """Initialise both encoders."""
    observation, action = log["observations"].shape[1], log["actions"].shape[1]
    generator = np.random.default_rng(0)
    return {
        "phi": mlp_init(generator, [observation + action, *JOB.hidden, JOB.representation]),
        "psi": mlp_init(generator, [observation + 1, *JOB.hidden, JOB.representation]),
    }


def critic_loss(weights, log: Log, batch) -> jax.Array:
    """Symmetric InfoNCE of one batch."""
    rows, anchors, reached = batch
    actions = (log["actions"][anchors] - log["action_mean"]) / log["action_std"]
    absorbed = jnp.zeros((len(rows), 1))
    phi = unit(mlp(weights["phi"], jnp.concatenate([states(log, rows), actions], -1)))
    psi = unit(mlp(weights["psi"], jnp.concatenate([states(log, reached), absorbed], -1)))
    logits = (phi / JOB.temperature) @ psi.T
    # Unit vectors bound the logits by 1 / temperature, so one shift serves rows and columns.
    exponentials = jnp.exp(logits - 1.0 / JOB.temperature)
    normalisers = jnp.log(exponentials.sum(0)) + jnp.log(exponentials.sum(1))
    return 0.5 * normalisers.mean() + 1.0 / JOB.temperature - (phi * psi).sum(-1).mean() / JOB.temperature


def policy_weights(log: Log):
    """Initialise the network of the mean, and the standard deviation."""
    sizes = [log["observations"].shape[1], *JOB.hidden, log["actions"].shape[1]]
    return {"mean": mlp_init(np.random.default_rng(0), sizes), "log_std": jnp.zeros(sizes[-1])}


def policy_loss(weights, log: Log, batch) -> jax.Array:
    """Advantage-weighted negative log-likelihood of one batch."""
    rows, anchors = batch
    low, high = log["action_low"], log["action_high"]
    squashed = jnp.tanh(mlp(weights["mean"], states(log, rows)))
    mean = jnp.clip(low + (squashed + 1.0) / 2.0 * (high - low), low, high)
    log_std = jnp.clip(weights["log_std"], -3.0, 1.0)
    error = (log["actions"][anchors] - mean) * jnp.exp(-log_std)
    density = (-0.5 * error * error - log_std - 0.5 * np.log(2.0 * np.pi)).sum(-1)
    advantage = jnp.minimum(jnp.exp(JOB.beta * log["advantages"][anchors]), JOB.max_weight)
    return -(advantage * density).mean()


STAGES = {
    "critic": (critic_weights, segments, critic_loss),
    "policy": (policy_weights, transitions, policy_loss),
}


def loop(step, state, draw, log: Log, chunk: int) -> Train:
    """Train in chunks with ``step(state, log, batch)``, which returns the next state and the loss."""

    def steps_of_chunk(state, key, log):
        key, own = jax.random.split(key)
        batches = draw(log, own, chunk)
        state, losses = jax.lax.scan(lambda state, batch: step(state, log, batch), state, batches)
        return state, key, losses.mean()

    compiled = jax.jit(steps_of_chunk, donate_argnums=(0, 1))
    held = [state, jax.random.key(0)]

    def steps_of(steps: int) -> int:
        chunks = -(-steps // chunk)
        for _ in range(chunks):
            *held[:], loss = compiled(*held, log)
        if not np.isfinite(float(loss)):  # waits for the last chunk
            raise FloatingPointError("the loss is not a number")
        return chunks * chunk

    return clocked(steps_of)


def device_memory() -> int:
    """Peak bytes on the GPU."""
    return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])


def main() -> None:
    """Train and report the time."""
    log = read_log()
    initial, draw, loss = STAGES[JOB.stage]
    optimiser = optax.adam(optax.cosine_decay_schedule(JOB.learning_rate, TOTAL))

    def step(state, log, batch):
        weights, moments = state
        value, gradient = jax.value_and_grad(loss)(weights, log, batch)
        updates, moments = optimiser.update(gradient, moments, weights)
        return (optax.apply_updates(weights, updates), moments), value

    weights = initial(log)
    train = loop(step, (weights, optimiser.init(weights)), draw, log, CHUNK)
    report(JOB, train, ["jax", "jaxlib", "optax"], device_memory)


if __name__ == "__main__":
    main()
