"""Time per operator in a training step of the critic (docs/speed.md).

python -m benchmarks.operators
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import RESULTS, markdown, read_data, write_record
from benchmarks.speed import CRITICS, LARGE, Configuration, write_log
from cvl_pipeline.dynamics.module import ContrastiveDynamics
from cvl_pipeline.dynamics.parameters import DynamicsParameters

STEPS = 40
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "LayerNorm": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "ReLU": ("aten::clamp_min", "aten::threshold_backward"),
    "exponentials": ("aten::exp_",),
    "Adam": ("aten::_fused_adamw_", "Optimizer.step#Adam.step"),
    "gathering the batch": ("aten::index_select",),
}
"""Operators by purpose; the others are elementwise operations, sums, copies and call overhead."""


def milliseconds_by_group(folder: Path, configuration: Configuration) -> dict[str, float]:
    """CPU milliseconds of each group of operators, and of all, in a training step without Lightning."""
    parameters = DynamicsParameters.model_validate(
        {
            "hidden": configuration.hidden,
            "training": {"batch_size": configuration.batch, "accelerator": "cpu"},
        }
    )
    module = ContrastiveDynamics(read_data(folder), parameters, 0)
    module.on_fit_start()
    optimizer = module.configure_optimizers()

    def steps(first: int) -> None:
        for step in range(first, first + STEPS):
            module.gradient_step(module.batch(step))
            optimizer.step()

    steps(0)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        steps(STEPS)
    times = {event.key: event.self_cpu_time_total / STEPS / 1e3 for event in profiled.key_averages()}
    row = {group: sum(times.get(name, 0.0) for name in names) for group, names in GROUPS.items()}
    return row | {"all others": sum(times.values()) - sum(row.values()), "step": sum(times.values())}


def main() -> None:
    """Profile, save and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder))
        rows = [
            {"hidden": str(configuration.hidden), "batch": str(configuration.batch)}
            | milliseconds_by_group(Path(folder), configuration)
            for configuration in (*CRITICS, LARGE)
        ]
    write_record(RESULTS / "operators.json", milliseconds=rows)
    print(markdown(pd.DataFrame(rows), digits=2))  # noqa: T201


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main()
