"""On SIGTERM, save a checkpoint and exit with code 75."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine import dist
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from pelk_mm.registry import HOOKS

from ..polling import Poll, max_over_processes
from ..processes import let_workers_outlive_one_signal
from .check_finite import CheckFiniteHook

# "Temporary failure, try again" of sysexits.h: the exit code after SIGTERM and a saved checkpoint.
EXIT_CODE = 75

# torchrun passes on a SIGTERM that its processes may get from the cluster as well: both are the same request.
SAME_REQUEST_SECONDS = 5.0


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, as clusters send it before they take a machine away, save a checkpoint and exit with code 75.

    The running iteration is finished, and with gradient accumulation the step of the optimiser. Several processes ask
    each other every ``interval`` iterations, at least every five seconds or, where one takes longer, after each
    iteration; all stop after the same one, whichever of them got the signal. The checkpoint is one of the config's
    checkpoint hook, in the middle of an epoch ``epoch_<epochs>_iter_<iterations>.pth``; with our resumable loops
    ``--resume`` then goes on as if there had been no stop. A validation is not finished, nor is it repeated. A second
    SIGTERM, five seconds later or more, ends the process at once. In a thread other than the main one, where Python has
    no signals, training stops when another process is asked. Once training has ended or failed, SIGTERM does what it
    did before; once it was stopped, five seconds later, as the process ends. Our tools add this hook to every training.

    Args:
        interval (int): Iterations after which processes ask each other, at most, in training and in validation. With
            :class:`CheckFiniteHook` training has one collective for both, and the smaller interval counts. Defaults
            to 50.

    Raises:
        ValueError: If ``interval`` is not positive.
    """

    # After all that changes or saves the state.
    priority = 'LOWEST'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval
        self._poll = self._val_poll = self._new_poll()
        self._asked_at: float | None = None
        self._previous_handler: Callable | int | None = None
        self._training = self._stopped = self._agreed = False
        self._common_val_iters = self._val_passes = 0
        self._position: dict[str, int] | None = None

    def before_run(self, runner: Runner) -> None:
        """Handle SIGTERM while the training loop runs: no hook is called when it fails."""
        shared = [hook.poll for hook in runner.hooks if isinstance(hook, CheckFiniteHook)]
        self._poll = self._new_poll(*shared[:1])
        loop = runner._train_loop
        if isinstance(loop, BaseLoop) and 'run' not in vars(loop):
            loop.run = partial(self._listen, loop, loop.run)

    def before_train(self, runner: Runner) -> None:
        """Let the workers that load data outlive the signal."""
        self._poll.restart()
        let_workers_outlive_one_signal(runner.train_dataloader)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop here, if any process was asked to."""
        if self._shall_stop(runner, self._poll, runner.iter + 1):
            self._stop(runner, runner.epoch, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find out how many iterations of the validation all processes have."""
        self._val_passes = 0
        self._val_poll = self._new_poll()
        if self._training:
            let_workers_outlive_one_signal(runner.val_dataloader)
            self._common_val_iters = -int(max_over_processes(-len(runner.val_dataloader))[0])

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop here, with the training state as it was before the validation."""
        self._val_passes += batch_idx == 0
        if batch_idx < self._common_val_iters and self._shall_stop(runner, self._val_poll, batch_idx + 1):
            for hook in runner.hooks:
                # It has put the averaged weights in the place of the trained ones. Those of mmpretrain can validate the
                # trained ones instead, or after them, in a second pass.
                if isinstance(hook, EMAHook) and getattr(hook, 'evaluate_on_ema', True) and self._val_passes == 1:
                    hook._swap_ema_parameters()
            self._stop(runner, runner.epoch, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put in where training stops.

        ``FlexibleRunner`` has put there what it is for a checkpoint at the end of an epoch, or after a training step.
        """
        if self._position is not None:
            checkpoint['meta'].update(self._position)

    def _listen(self, loop: BaseLoop, run: Callable[[], Any]) -> Any:
        """Run the loop with our handler of SIGTERM. Restore the previous handler."""
        # Without the reference to itself that a loop would wait with for the garbage collector.
        del loop.run  # type: ignore[method-assign]
        self._asked_at = self._position = None
        self._training, self._stopped, self._agreed = True, False, False
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            return run()
        finally:
            self._training = False
            self._common_val_iters = 0
            # Who has asked one process may ask the others when that ends. They are about to end, too.
            if in_main_thread and not self._stopped:
                signal.signal(signal.SIGTERM, self._restored_handler())

    def _restored_handler(self) -> Callable | int:
        # None stands for a handler that was not set by Python, which cannot set it again.
        return signal.SIG_DFL if self._previous_handler is None else self._previous_handler

    def _on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at >= SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL if self._training else self._restored_handler())
            signal.raise_signal(number)

    def _new_poll(self, poll: Poll | None = None) -> Poll:
        poll = poll or Poll(self.interval)
        poll.interval = min(poll.interval, self.interval)
        poll.add('preemption', lambda: float(self._asked_at is not None))
        return poll

    def _shall_stop(self, runner: Runner, poll: Poll, iteration: int) -> bool:
        """Return whether any process was asked to, and no gradient is waiting for the step of the optimiser."""
        if dist.get_world_size() == 1:
            self._agreed = self._asked_at is not None
        elif poll.is_due(iteration):
            self._agreed |= poll.ask(iteration)['preemption'] > 0
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        return self._agreed and all(each.should_update() for each in wrappers if isinstance(each, OptimWrapper))

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> None:
        saved = self._save(runner, epoch, iteration)
        # No process ends before the first one has written: that would end it, too.
        dist.barrier()
        runner.logger.warning(f'SIGTERM: training stops after iteration {iteration}. {saved} Go on with --resume. Exit '
                              f'code {EXIT_CODE}')
        self._stopped = True
        raise SystemExit(EXIT_CODE)

    def _save(self, runner: Runner, epoch: int, iteration: int) -> str:
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        if hook is None:
            return 'Nothing is saved, as the config has no checkpoint hook.'
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        within_epoch = by_epoch and iteration != epoch * len(runner.train_dataloader)
        step: int | str = epoch if hook.by_epoch else iteration
        if hook.by_epoch and within_epoch:
            step = f'{epoch}_iter_{iteration}'
        if hook.last_ckpt != hook.file_backend.join_path(hook.out_dir, hook.filename_tmpl.format(step)):
            self._position = dict(epoch=epoch, iter=iteration)
            hook._save_checkpoint_with_step(runner, step, dict(self._position))
        if within_epoch and type(runner.train_loop) is EpochBasedTrainLoop:
            return (f"{hook.last_ckpt} is saved, but MMEngine's loop will start its epoch again; "
                    'pelk_mm.ResumableEpochBasedTrainLoop would go on in it.')
        return f'{hook.last_ckpt} is saved.'
