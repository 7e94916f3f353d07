"""torchrun, which for SIGTERM ends like the trainings that it has handed it on to: with the exit code 75."""

import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

# pelk_mm.engine.hooks.preemption.EXIT_CODE, which takes seconds to import.
EXIT_CODE = 75

if __name__ == '__main__':
    try:
        main()
    except SignalException as error:
        if error.sigval != signal.SIGTERM:
            raise
        sys.exit(EXIT_CODE)
