"""Programs that train, predict and measure."""

import atexit

from torch import distributed


@atexit.register
def leave_process_group() -> None:
    """Where several processes share the work, accelerate opens a process group that nobody closes; a thread of Gloo
    that still holds tensors when the interpreter ends then aborts the process, now and then, after all is done.

    NCCL has no such threads, and could wait here for a process that has failed."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
