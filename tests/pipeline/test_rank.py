"""How a rank learns its number from whoever has started it."""

import pytest

from pipeline.rank import Place

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
ONE_OF_SLURM = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1"}


@pytest.mark.parametrize(
    "names",
    [
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
        [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    ],
    ids=["torchrun", "deepspeed", "openmpi", "hydra", "srun"],
)
def test_every_launcher_has_its_own_names_for_the_same(names: list[str]):
    said = dict(zip(names, ("3", "4", "1", "2"), strict=True))
    assert Place.of(said) == Place(3, 4, 1, 2)
    assert Place.of(said).variables() == TORCHRUN


def test_torchrun_inside_an_allocation_counts_for_more_than_slurm():
    assert Place.of({**ONE_OF_SLURM, **TORCHRUN}).rank == 3


@pytest.mark.parametrize("said", [{}, {"RANK": "0"}, {**TORCHRUN, "RANK": "one"}])
def test_without_a_launcher_there_is_no_rank(said: dict[str, str]):
    with pytest.raises(ValueError, match="no launcher has set RANK and WORLD_SIZE"):
        Place.of(said)
