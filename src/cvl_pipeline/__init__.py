"""Offline reinforcement learning without TD learning: Contrastive Value Learning.

``import cvl_pipeline as cvl`` gives the functions and classes of ``cvl_pipeline.api``. They are imported when first
used, because torch takes seconds.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from cvl_pipeline.api import (
        EpisodeData,
        QFunction,
        episodes_from_arrays,
        episodes_from_file,
        evaluate,
        export_policy,
        extract_policy,
        label_rewards,
        load,
        load_episodes,
        read_out,
        save,
        train_critic,
        train_method,
    )

__all__ = [
    "EpisodeData",
    "QFunction",
    "episodes_from_arrays",
    "episodes_from_file",
    "evaluate",
    "export_policy",
    "extract_policy",
    "label_rewards",
    "load",
    "load_episodes",
    "read_out",
    "save",
    "train_critic",
    "train_method",
]


def _let_waiting_threads_sleep() -> None:
    """Let the threads of torch sleep while they wait for each other; they burn a core by default.

    Beside another busy process, a step on two threads takes 7 to 15 times its CPU time without this. OpenMP reads the
    environment when torch is imported, in this process and in all that it starts. A setting of the user's own wins.
    """
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if "torch" not in sys.modules and not any(name in os.environ for name in own):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


_let_waiting_threads_sleep()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cvl_pipeline' has no attribute '{name}'")
    from cvl_pipeline import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
