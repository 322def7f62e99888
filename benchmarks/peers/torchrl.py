"""TorchRL's losses in a plain loop, with batches by index on the device, fused Adam and its soft updates."""

from __future__ import annotations

import sys

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import IQLLoss, SoftUpdate, TD3BCLoss

from benchmarks.peers.harness import Job, clocked, given_job, report
from benchmarks.peers.torch_networks import mlp, read_transitions


class OfPair(nn.Module):
    """Q of a state and an action."""

    def __init__(self, inputs: int, job: Job) -> None:
        """Build the network."""
        super().__init__()
        self.network = mlp(inputs, job.hidden, 1)

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """(B, O) and (B, A) -> (B, 1)."""
        return self.network(torch.cat([observation, action], -1))


def main() -> None:
    """Train and report the time."""
    job = given_job(sys.argv[1])
    log = read_transitions(job)
    observation, action = log["states"].shape[1], log["actions"].shape[1]
    bounds = Bounded(-1.0, 1.0, (action,), device=job.device)
    q = ValueOperator(OfPair(observation + action, job), in_keys=["observation", "action"])
    if job.method == "IQL":
        network = nn.Sequential(mlp(observation, job.hidden, 2 * action), NormalParamExtractor())
        actor = ProbabilisticActor(
            TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"], distribution_class=TanhNormal, spec=bounds,
        )  # fmt: skip
        value = ValueOperator(mlp(observation, job.hidden, 1), in_keys=["observation"])
        loss = IQLLoss(actor.to(job.device), q.to(job.device), value.to(job.device), temperature=job.beta)
    else:
        network = nn.Sequential(mlp(observation, job.hidden, action), nn.Tanh())
        actor = TensorDictModule(network, in_keys=["observation"], out_keys=["action"])
        loss = TD3BCLoss(actor.to(job.device), q.to(job.device), action_spec=bounds)
    loss.make_value_estimator(gamma=job.discount)
    target = SoftUpdate(loss, tau=0.005)
    optimiser = torch.optim.Adam(loss.parameters(), lr=job.learning_rate, fused=True)
    # No episode terminates; all are truncated.
    done = torch.zeros(job.batch, 1, dtype=torch.bool, device=job.device)
    count = 0

    def steps_of(steps: int) -> int:
        nonlocal count
        for _ in range(steps):
            index = torch.randint(len(log["actions"]), (job.batch,), device=job.device)
            batch = TensorDict(
                {
                    "observation": log["states"][index],
                    "action": log["actions"][index],
                    "next": {
                        "observation": log["next_states"][index],
                        "reward": log["rewards"][index].unsqueeze(-1),
                        "done": done,
                        "terminated": done,
                    },
                },
                batch_size=job.batch,
            )
            if job.method == "IQL":
                losses = loss(batch)
                total = losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_value"]
            else:
                total = loss.qvalue_loss(batch)[0]
                if count % 2:  # delayed policy updates
                    total = total + loss.actor_loss(batch)[0]
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            target.step()
            count += 1
        if not torch.isfinite(total):  # waits for the last step
            raise FloatingPointError("the loss is not a number")
        return steps

    report(job, clocked(steps_of), ["torchrl", "tensordict", "torch"], torch.cuda.max_memory_allocated)


if __name__ == "__main__":
    main()
