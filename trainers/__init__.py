"""Programs that train, predict and measure."""

import atexit

from torch import distributed


@atexit.register
def leave_process_group() -> None:
    """Where several processes share the work, accelerate opens a process group that nobody closes; a thread of Gloo
    that still holds tensors when the interpreter ends then aborts the process, now and then, after all is done."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
