"""Programs that train, predict and measure."""

import atexit

from torch import distributed


@atexit.register
def leave_process_group() -> None:
    """Where several processes share the work, accelerate opens a process group that nobody closes; a thread of Gloo
    that still holds tensors when the interpreter ends then aborts the process, now and then, after all is done
    (pytorch/pytorch#179291). NCCL's group stays open as before: to close it is untried, and may wait for a process that
    has failed."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
