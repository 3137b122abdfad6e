"""Processes that are killed in the midst of their writing."""

import os
import sys

import torch


def killed_at(event, work, touches):
    """Whether a process that is to do some work ends at the `event`th audit event that `touches` says is one."""
    pid = os.fork()
    if not pid:
        left = [event]

        def hook(name, _):
            if touches(name):
                left[0] -= 1
                if left[0] == 0:
                    os._exit(9)

        sys.addaudithook(hook)
        torch.set_num_threads(1)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
