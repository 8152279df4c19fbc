"""Which part of a run this process rates, according to torchrun, accelerate or Slurm."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from selectit_hf.errors import SettingError

__all__ = ["Rank"]


@dataclass(frozen=True)
class Rank:
    """One of ``world`` processes that rate the same run.

    Attributes:
        rank: its number, from 0. It rates the shards with ``number % world == rank``.
        world: how many were started together.
        local_rank: its number on its machine, which chooses the GPU.

    Raises:
        SettingError: such a rank is impossible.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local_rank < 0:
            raise SettingError(
                f"Rank {self.rank} (local rank {self.local_rank}) of {self.world} processes is "
                "impossible; ranks count from 0. Check --rank and --world, or what the launcher "
                "sets."
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Rank":
        """The rank set by the launcher: torchrun or accelerate, else Slurm, else a single process.

        In a Slurm array whose tasks have several processes each, all processes count: those that
        srun started. A batch script itself is one process, whatever it has reserved.

        Raises:
            SettingError: a variable is not a whole number, or variables contradict each other.
        """
        environment = os.environ if environment is None else environment

        def number(name: str, default: int) -> int:
            text = environment.get(name, "")
            if not text:
                return default
            if not text.isdecimal():
                raise SettingError(f"{name}={text!r} must be a whole number; the launcher sets it.")
            return int(text)

        if bool(environment.get("RANK")) != bool(environment.get("WORLD_SIZE")):
            raise SettingError(
                "Of RANK and WORLD_SIZE only one is set; launchers set both. Set the other, or "
                "unset both."
            )
        if environment.get("RANK"):
            rank = number("RANK", 0)
            return cls(rank, number("WORLD_SIZE", 1), number("LOCAL_RANK", rank))
        step, first = number("SLURM_ARRAY_TASK_STEP", 1) or 1, number("SLURM_ARRAY_TASK_MIN", 0)
        task = (number("SLURM_ARRAY_TASK_ID", first) - first) // step
        tasks = max(number("SLURM_ARRAY_TASK_COUNT", 1), 1)
        processes = max(number("SLURM_STEP_NUM_TASKS", 1), 1)  # SLURM_NTASKS is set without srun
        rank = task * processes + number("SLURM_PROCID", 0)
        return cls(rank, tasks * processes, number("SLURM_LOCALID", 0))
