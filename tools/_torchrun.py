"""torchrun for the shell scripts beside it, with their exit codes and their names of settings in errors.

It ends with 75 if every process has ended so, as trainings do after SIGTERM and a saved checkpoint.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api
from torch.distributed.run import main, parse_args

# pelk_mm.engine.hooks.preemption.EXIT_CODE, which takes seconds to import.
EXIT_CODE = 75
FAILED = 'pelk_mm/failed'
# Seconds in which processes may end by themselves, or save a checkpoint, once another node has failed. As long as they
# have when they are asked to.
GRACE = float(os.environ.get('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', '30'))


class Agent(LocalElasticAgent):
    """Torchrun's agent that ends its processes when another node has failed, and keeps what they have ended with."""

    exit_codes: list = []

    def run(self, *args):
        ended = threading.Event()
        threading.Thread(target=self._watch_other_nodes, args=(ended, ), daemon=True).start()
        try:
            return super().run(*args)
        finally:
            ended.set()
            handlers = self._pcontext.subprocess_handlers.values() if self._pcontext else ()
            Agent.exit_codes = [handler.proc.poll() for handler in handlers]
            if self._worker_group.group_world_size and not asked_to_end(Agent.exit_codes):
                # Where the network is cut, this takes as long as the store's timeout.
                report = threading.Thread(target=self._report, daemon=True)
                report.start()
                report.join(5)

    def _report(self):
        with contextlib.suppress(Exception):
            if self._worker_group.group_world_size > 1 and any(Agent.exit_codes):
                self._store.set(FAILED, '1')

    def _watch_other_nodes(self, ended):
        """Kill the processes of this node after another has failed: those that have not met it would wait."""
        while not ended.wait(1):
            if not self._pcontext or self._worker_group.group_world_size < 2:
                continue
            try:
                failed = self._store.check([FAILED])
            # Node 0 is gone, which keeps the store.
            except Exception:
                failed = True
            if failed and not ended.wait(GRACE):
                print('Another node has failed: the processes of this one are ended', file=sys.stderr)
                for pid in self._pcontext.pids().values():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return


def asked_to_end(codes):
    """Return whether all processes have saved a checkpoint, and one that was still ending was asked once more."""
    return EXIT_CODE in codes and not set(codes) - {EXIT_CODE, -signal.SIGTERM}


def run():
    """Launch, and return the exit code or a message."""
    args = parse_args(sys.argv[1:])
    place = f'{args.master_addr}:{args.master_port}'
    nodes = int(args.nnodes.rpartition(':')[2])
    if not 0 <= args.node_rank < nodes:
        return f'NODE_RANK must be from 0 to NNODES - 1, which is {nodes - 1}, got {args.node_rank}'
    if nodes > 1:
        hint = '' if os.environ.get('MASTER_ADDR') else ' (MASTER_ADDR is not set: only this machine is reached so)'
        print(f'Node {args.node_rank}: waiting for {nodes} nodes at {place}{hint}', file=sys.stderr)
    started = time.monotonic()
    try:
        main()
    except SignalException as error:
        if error.sigval != signal.SIGTERM:
            raise
        # Those that had not begun to train end by the signal itself.
        if not set(Agent.exit_codes) - {0, EXIT_CODE, -signal.SIGTERM}:
            return EXIT_CODE
        return (f'SIGTERM: not every process has saved a checkpoint and ended, exit codes {Agent.exit_codes}. Go on '
                'with --resume, from the last checkpoint')
    except ChildFailedError as error:
        if not asked_to_end([failure.exitcode for failure in error.failures.values()]):
            raise
        return EXIT_CODE
    except RuntimeError as error:
        if 'EADDRINUSE' in str(error):
            return (f'PORT={args.master_port} is taken on this machine, perhaps by another training. Choose another '
                    f'one, the same for every node: PORT={args.master_port + 1} bash tools/dist_train.sh ...')
        if Agent.exit_codes or nodes < 2:
            raise
        return (f'The {nodes} nodes have not met at {place} within {time.monotonic() - started:.0f} seconds: {error}\n'
                'Start all of them with the same NNODES, MASTER_ADDR and PORT, and each with its own NODE_RANK. '
                'MASTER_ADDR is node 0, and its firewall has to let the others in at PORT')
    return 0


if __name__ == '__main__':
    api.LocalElasticAgent = Agent
    sys.exit(run())
