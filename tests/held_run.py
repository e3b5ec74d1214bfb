"""`leantad train` that stands still (SIGSTOP) once a number of steps is done and saved.

A test that kills, stops or interrupts a run in the middle starts it with this, so that it is in the middle
however busy the machine is: python held_run.py STEPS ARGUMENTS...
"""

from __future__ import annotations

import os
import signal
import sys

from train import loop
from train.loop import train_step
from train.main import main

if __name__ == "__main__":
    steps = int(sys.argv.pop(1))

    def held(run, batches, *, interrupted):
        if run.progress.step == steps:
            os.kill(os.getpid(), signal.SIGSTOP)
        return train_step(run, batches, interrupted=interrupted)

    loop.train_step = held
    main()
