"""Assigns GPUs to the processes of a batch job on one machine, without communication between them."""

import fcntl
import os
import tempfile
import time
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from llama_serving.errors import SetupError

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
DRIVER: Final = Path("/proc/driver/nvidia/gpus")
"""NVIDIA's driver has a folder for each GPU there."""
PATIENCE_S: Final = 30.0
"""Seconds; a killed process may need some time to release its GPUs."""

_held: list[int] = []
"""Descriptors of locks, which the system closes with the process, however it ends."""


def claim(
    number: int,
    environment: MutableMapping[str, str] = os.environ,
    *,
    driver: Path = DRIVER,
    locks: Path | None = None,
    patience_s: float = PATIENCE_S,
) -> tuple[str, ...]:
    """Take `number` GPUs that no other process of ours has, until this process ends; call it before using CUDA.

    Args:
        number: of GPUs.
        environment: its `CUDA_VISIBLE_DEVICES`, if set, lists the GPUs; it is set to those taken.
        driver: folder in which the driver lists its GPUs.
        locks: folder of the locks, the same for all processes; None is the system's folder for temporary files.
        patience_s: seconds to wait for other processes to end.

    Returns:
        Their names, as in `CUDA_VISIBLE_DEVICES`.

    Raises:
        SetupError: there are too few GPUs, or other processes have them.
    """
    if _held:
        return _names(environment, driver)
    names = _names(environment, driver)
    if len(names) < number:
        raise SetupError(
            f"LLAMA_BATCH_GPUS is {number}, and there are {len(names)} GPUs. Lower it, or unset it."
        )
    deadline = time.monotonic() + patience_s
    while (taken := _take(names, number, locks or Path(tempfile.gettempdir()))) is None:
        if time.monotonic() > deadline:
            raise SetupError(
                f"LLAMA_BATCH_GPUS is {number}, and other processes have the GPUs {', '.join(names)}. Lower it, or "
                "max_concurrency_per_instance."
            )
        time.sleep(0.2)
    environment[VISIBLE] = ",".join(taken)
    return taken


def _names(environment: MutableMapping[str, str], driver: Path) -> tuple[str, ...]:
    given = environment.get(VISIBLE)
    if given is not None:
        return tuple(name.strip() for name in given.split(",") if name.strip())
    with suppress(OSError):
        return tuple(str(number) for number, _ in enumerate(driver.iterdir()))
    return ()


def _take(names: tuple[str, ...], number: int, locks: Path) -> tuple[str, ...] | None:
    """Lock the first free ones; all or none."""
    taken: dict[str, int] = {}
    for name in names:
        descriptor = _lock_file(locks / f"llama-gpu-{name.replace('/', '-')}.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        taken[name] = descriptor
        if len(taken) == number:
            _held.extend(taken.values())
            return tuple(taken)
    for descriptor in taken.values():
        os.close(descriptor)
    return None


def _lock_file(path: Path) -> int:
    try:
        # Opened for reading, so that another user's file can be locked too.
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise SetupError(
            f"{path} can't be opened: {error.strerror}. Remove it, or unset LLAMA_BATCH_GPUS."
        ) from error
