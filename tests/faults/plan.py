"""Which faults are injected."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.references import STAGES, TRAININGS, References
from tests.faults.surroundings import EDITED, LOG, LOGS, MOVED, UNLOCKED

INTERRUPTIONS = {
    "SIGKILL, by time": 5,
    "SIGKILL, at a flush or rename": 6,
    "SIGKILL, halfway through a write": 3,
    "SIGTERM, by time": 4,
    "SIGTERM, at a flush or rename": 3,
    "ended by the system in a write": 3,
    "disk full": 4,
    "disk full, at a flush or rename": 3,
    "file too large": 3,
}
"""How often each comes to pass in each stage."""
OF_THE_WHOLE_RUN = {"SIGKILL, by time": 4, "SIGTERM, by time": 3, "disk full": 3, EDITED: 15}
SURROUNDINGS = {MOVED: 5, UNLOCKED: 5}
"""How often each comes to pass around each stage."""
REMADE = ", then --only-missing-outputs"
OF_BYTES = ("flipped byte", "another's content", "deleted")
OF_RECORD = "record damaged"
DAMAGES = ("cut", "flipped byte", "empty", "deleted", "another's content", "other version")


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        stage: that is run when it happens, or after it; empty: all.
        kind: what happens.
        target: what is damaged, an artifact or the checkpoint of a training; empty: nothing.
        node: the one node that is run after it; empty: the stage.
    """

    stage: str
    kind: str
    target: str = ""
    node: str = ""

    def __str__(self) -> str:
        """For the list of what went wrong."""
        of = f" of {self.target}" if self.target else ""
        return f"{self.node or self.stage or 'kedro run'}: {self.kind}{of}"


def make_plan(references: References) -> list[Fault]:
    """All faults, in the order of the stages."""
    plan = [Fault("", kind) for kind, count in OF_THE_WHOLE_RUN.items() for _ in range(count)]
    for stage in STAGES:
        plan += [
            Fault(stage, kind)
            for kind, count in {**INTERRUPTIONS, **SURROUNDINGS}.items()
            for _ in range(count)
        ]
        plan += _damages(stage, references)
    return plan + [Fault("data_ingestion", kind, LOG) for kind in LOGS]


def _damages(stage: str, references: References) -> list[Fault]:
    faults = [
        Fault(stage, kind, name)
        for name in sorted(STAGES[stage].inputs() & references.paths.keys())
        for kind in DAMAGES
    ]
    faults += [
        Fault(stage, kind, training)
        for training, of_stage in TRAININGS.items()
        for kind in (*DAMAGES, "none")
        if of_stage == stage
    ]
    for name in sorted(STAGES[stage].all_outputs()):
        suffix = references.paths[name].rpartition(".")[2]
        readers = [node.name for node in STAGES[stage].nodes if name in node.inputs]
        # What no node of another stage reads: the stage makes it anew, and nodes of it are run alone.
        faults += [Fault(stage, kind, name) for kind in ("cut", "deleted")]
        if readers and suffix != "safetensors":
            kinds = DAMAGES if suffix == "parquet" else DAMAGES[:-1]  # JSON has no version
            faults += [Fault(stage, kind, name, readers[0]) for kind in kinds]
        faults += [Fault(stage, kind + REMADE, name) for kind in (*OF_BYTES, OF_RECORD)]
    return faults
