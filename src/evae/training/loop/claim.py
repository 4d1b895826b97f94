"""The beginning of a training: its run folder becomes this training's alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from evae.training.loop.stopping import largest_of_ranks
from evae.training.resume.folder_lock import FolderLock, taken
from evae.training.resume.run_folder import RunFolder
from evae.training.settings import Settings


@contextmanager
def claimed_folder(settings: Settings, accelerator: Accelerator) -> Iterator[RunFolder]:
    """The run folder, which no other training may use while the block runs.

    All ranks call this together; the main one has the folder for all.

    Raises:
        EvaeError: another training has it, or it cannot be used (see `RunFolder`); nothing is left behind.
    """
    settings.require("dataset", "output_dir")
    folder = Path(settings.output_dir)
    lock = FolderLock(folder)
    try:
        other = lock.take() if accelerator.is_main_process else None
        if largest_of_ranks(int(other is not None), accelerator):
            raise taken(folder, other or "see the first process")
        run = RunFolder(settings, accelerator.num_processes, lock)
        yield run
    finally:
        if accelerator.is_main_process:
            lock.release()
