"""How the threads of torch wait for each other, said before torch is imported."""

import os


def wait_asleep() -> None:
    """From the import of torch on, and in the processes that this one starts, threads that wait for others sleep.

    By itself the OpenMP of torch lets them turn in a loop for milliseconds at the end of every operation, which takes
    the core from whatever they wait for as soon as there are more threads than free cores: beside other work, two
    threads took 11 to 20 CPU seconds for what takes 3.5. Whoever sets OMP_WAIT_POLICY keeps it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
