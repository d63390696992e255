"""Who starts the processes of a stage, and where. Imports no torch."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from reward.settings import Settings


class SlurmConfig(Settings):
    nodes: int = Field(default=1, gt=0)
    """Nodes of the allocation, with `launch.ranks` processes on each."""
    time: str | None = None
    """Longest time, as in `--time`: 24:00:00; null = that of the partition."""
    partition: str | None = None
    """Partition; null = the cluster's default."""
    account: str | None = None
    """Account that is charged; null = the user's default."""
    options: list[str] = []
    """Further options of sbatch, such as `--gres=gpu:8`."""
    setup: list[str] = []
    """Shell lines before the run, such as `module load cuda`."""
    grace_s: int = Field(default=120, gt=0)
    """Seconds before the end of the time at which the run is asked to save and stop: a step and a save."""


class LaunchConfig(Settings):
    launcher: Literal["local", "deepspeed", "torchrun", "slurm"] = "local"
    """local: this host; deepspeed if there is a hostfile. torchrun: a printed line per node. slurm: an sbatch file."""
    ranks: int = Field(default=1, gt=0)
    """Processes on this host (local) or on each node (slurm); a hostfile has its own `slots`."""
    hostfile: str | None = None
    """File with one `<host> slots=<processes>` per line; `--nodes` sets it."""
    backend: Literal["pdsh", "openmpi", "mpich", "impi", "slurm"] = "pdsh"
    """What DeepSpeed starts the nodes with."""
    interface: str | None = None
    """Network interface between the hosts, such as eth0 or ib0; null = the one that leads to the first host."""
    master_address: str | None = None
    """Address at which the ranks meet; null = that of the first host on the interface."""
    master_port: int | None = Field(default=None, gt=0, lt=65536)
    """Port at which the ranks meet; null = a free one of the first host."""
    environment: dict[str, str] = {}
    """Variables that the ranks get beside those passed by themselves; no secrets."""
    pass_environment: list[str] = []
    """Names of further variables of this environment to pass to the ranks; the place for secrets."""
    join_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds in which all ranks have to have started."""
    lost_after_s: float = Field(default=30.0, ge=5)
    """Seconds of silence after which a host counts as lost."""
    restarts: int = Field(default=0, ge=0)
    """How often a stage that lost a rank is started again from its last checkpoint; `--restarts` sets it."""
    slurm: SlurmConfig = SlurmConfig()

    @field_validator("pass_environment")
    @classmethod
    def _are_names(cls, names: list[str]) -> list[str]:
        wrong = [name for name in names if not name.isidentifier()]
        if wrong:
            raise ValueError(f"found {wrong[0]!r}, expected names of variables, without values")
        return names

    @model_validator(mode="after")
    def _hosts_fit(self) -> "LaunchConfig":
        if self.starter in ("deepspeed", "torchrun") and not self.hostfile:
            raise ValueError(f"launcher: {self.launcher} needs a hostfile; set launch.hostfile, or give --nodes")
        if self.starter == "slurm" and self.hostfile:
            raise ValueError("launcher: slurm takes its hosts from the allocation; leave out hostfile")
        return self

    @property
    def starter(self) -> str:
        """The launcher that is used: a hostfile makes `local` to `deepspeed`."""
        return "deepspeed" if self.launcher == "local" and self.hostfile else self.launcher

    @property
    def alone(self) -> bool:
        """Whether a stage is one process on this host."""
        return self.starter == "local" and self.ranks == 1
