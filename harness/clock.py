"""The clock every training experiment is timed with. Imports no ML framework.

A device works asynchronously: a step that has returned to Python may not have run yet. Time is
therefore read only after `synchronize`, and `synchronize` is called only where a window of steps
begins or ends, because a synchronization per step would itself slow the run down.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from tqdm import tqdm

from harness.awake import Pauses
from harness.observer import Observer
from harness.process import tell
from harness.windows import Run, Window, speed_of, timing_columns

WARMUP_STEPS = 3  # enough unless a queue of batches, filled meanwhile, has to drain first
WINDOW_SECONDS = 0.5  # a window closes at the first step end after this long
PROBE_SECONDS = 5.0  # length of the device-only probe, of a run that takes longer
UNENDING = 1_000_000  # epochs that no run reaches
SUSPENDED = "suspended"  # the mark of a row whose run stood still


class Team(NamedTuple):
    """Ranks that train together, one device each; rank 0 is the one whose clock counts.

    Devices wait for one another in every step, so that all windows must end at the same steps:
    rank 0 says after how many, and when the time is up.
    """

    size: int = 1
    rank: int = 0
    agree: Callable[[float], float] = float  # what rank 0 gave for it


class Clock:
    """Times one training run: `start`, then `step` after every optimizer update, then `stop`.

    An epoch trains its full batches. The protocols drop the smaller rest, which comes in other
    shapes: frameworks compile, tune and allocate for these anew. An epoch's time is nevertheless
    that of all its samples, at the pace of those trained on, so that batch sizes compare.

    Args:
        batch_size: samples of a full batch.
        samples_per_epoch: samples of one epoch, with the rest.
        epochs: epochs of the whole run.
        synchronize: waits until the device has done all that was asked of it.
        max_seconds: end the run after this many seconds of steady training; None runs every epoch.
        warmup_steps: steps after the first one that the steady rate leaves out.
        observer: looks at the machine during the steady training. Where it soaks it first, the run
            goes on beyond `epochs` until so many are steady (`epochs_to_train`).
        team: the ranks that train together; samples of all are counted, and `batch_size`, `samples`
            and `work` are those of one.
        now: the host's clock, in seconds.

    Windows in which the run stood still (Ctrl-Z, sleep) are left out of every rate.
    """

    def __init__(
        self,
        batch_size: int,
        samples_per_epoch: int,
        epochs: int,
        synchronize: Callable[[], None],
        max_seconds: float | None = None,
        warmup_steps: int = WARMUP_STEPS,
        observer: Observer | None = None,
        team: Team = Team(),  # noqa: B008 - it is immutable
        now: Callable[[], float] = time.perf_counter,
    ):
        self.observer = observer or Observer()
        self.soak = self.observer.soak
        self.team = team
        self.batch_size = batch_size * team.size
        self.samples_per_epoch = samples_per_epoch
        self.epochs = epochs
        self.synchronize = synchronize
        self.max_seconds = max_seconds
        self.warmup_steps = warmup_steps
        self.now = now
        self.pauses = Pauses()
        self.paused = False
        self.steps = 0
        self.samples = 0
        self.work = 0
        self.soaked_samples, self.soaked_seconds = 0, 0.0  # with the warm-up's
        self.steps_of_window = None
        self.first_step_seconds = None
        self.steady_start = self.steady_seconds = None
        self.watch_seconds = 0.0  # that it takes to begin to watch: no part of an epoch
        self.total_seconds = None
        self._warmup_samples = 0
        self.windows: list[Window] = []

    @property
    def epochs_to_train(self) -> int:
        """For training loops, which end when `step` says so, or after these."""
        return UNENDING if self.soak else self.epochs

    def start(self, label: str | None = None) -> None:
        """Begin timing; call it right before the first batch is loaded."""
        self.label = label or f"batch size {self.batch_size}"
        timed = "{l_bar}{bar}| {n:.1f}/{total:.1f} s{postfix}" if self.max_seconds else None
        self.bar = tqdm(
            total=self.max_seconds or self._samples_of_all_epochs(),
            desc=self.label,
            unit=" samples",
            unit_scale=not self.max_seconds,
            bar_format=timed,
            position=1,
            leave=False,
            disable=None if self.team.rank == 0 else True,
        )
        self._say("first step")
        self.synchronize()
        self.pauses.since_last()
        self.start_time = self.now()
        self._open_window(self.start_time)

    def step(self, samples: int, work: int | None = None) -> bool:
        """Count an optimizer update on `samples` samples; True when the time is up.

        Args:
            work: padded tokens, where samples differ in size; default: `samples`.
        """
        work = (samples if work is None else work) * self.team.size
        samples *= self.team.size
        self.steps += 1
        self.samples += samples
        self.work += work
        self._window_steps += 1
        self._window_samples += samples
        self._window_work += work
        if self.steps == 1:
            window = self._close_window()
            self.first_step_seconds = None if window.paused else window.seconds
            self._first_samples = samples
            self._say("warming up", f"the first step took {window.seconds:.1f} s")
        elif self.steps_of_window is None:
            if self.steps > self.warmup_steps:
                self._end_warmup()
            else:
                self._say("warming up", f"step {self.steps}")
        elif self._window_is_long_enough():
            if self.steady_start is None:
                self._soak_on()
            else:
                return self._end_window()
        return False

    def _window_is_long_enough(self) -> bool:
        if self.team.size > 1:
            return self._window_steps >= self.steps_of_window
        return self.now() - self._window_start >= WINDOW_SECONDS

    def _end_warmup(self) -> None:
        window = self._close_window()
        steps = WINDOW_SECONDS / window.seconds * window.steps
        self.steps_of_window = self.team.agree(max(1, round(steps)))
        if not self.soak:
            self._begin_steady(window.rate)

    def _soak_on(self) -> None:
        """End a window of the soak, and the soak itself where the speed is steady."""
        window = self._close_window()
        over = not window.paused and self.soak.over(self._window_start, speed_of([window]))
        self._say("soaking", f"for {self.soak.seconds:.0f} s, {window.rate:,.1f} samples/s")
        if self.team.agree(over):
            self.soaked_samples = self.samples
            self.soaked_seconds = self._window_start - self.start_time
            self._begin_steady(window.rate)

    def _begin_steady(self, rate: float) -> None:
        """What begins here is what rates are made of."""
        self._warmup_samples = self.samples
        self.observer.begin()
        start = self.now()
        self.watch_seconds = start - self._window_start
        self._open_window(start)
        self.steady_start = self._window_start
        seconds = (self._samples_of_all_epochs() + self.soaked_samples - self.samples) / rate
        left = max(0.0, min(seconds, self.max_seconds or seconds))
        self._say("training", f"{rate:,.1f} samples/s", left)

    def _end_window(self) -> bool:
        """Keep the window; True when the time is up."""
        window = self._close_window()
        if window.paused:
            self.steady_start += window.seconds
        else:
            self.windows.append(window)
        elapsed = self._window_start - self.steady_start
        samples = self.samples - self.soaked_samples
        done = min(elapsed, self.max_seconds) if self.max_seconds else samples
        self.bar.update(done - self.bar.n)
        percent = 100 * done / self.bar.total
        self.bar.set_postfix_str(f"{window.rate:,.1f} samples/s", refresh=False)
        tell(f"{self.label}: training", f"{percent:.0f} % done, {window.rate:,.1f} samples/s")
        over = self.max_seconds is not None and elapsed >= self.max_seconds
        steps = self.samples_per_epoch // self.batch_size * self.epochs
        over |= self.soak is not None and samples >= steps * self.batch_size
        return bool(self.team.agree(over))

    def _samples_of_all_epochs(self) -> int:
        return self.samples_per_epoch * self.epochs

    def _say(self, stage: str, detail: str = "", seconds_left: float | None = None) -> None:
        """Show what the run is at, before there are windows: a first step may take minutes."""
        self.bar.set_postfix_str(", ".join(filter(None, [stage, detail])))
        tell(f"{self.label}: {stage}", detail, seconds_left)

    def stop(self) -> None:
        """End timing; call it right after the last step."""
        self.synchronize()
        end = self.now()
        self.total_seconds = end - self.start_time - self.watch_seconds
        if self.steady_start is not None:
            self.observer.end()
            self.steady_seconds = end - self.steady_start
        # A short rest is evidence only when there is no full window.
        if self.steady_start is not None and self._window_steps and not self.windows:
            rest = self._close_window()
            self.windows += [] if rest.paused else [rest]
        self.paused |= self.pauses.since_last()
        self.bar.close()

    def measurement(self) -> dict:
        """The columns of a row that follow from the run, and from what was seen meanwhile."""
        run = Run(
            self.windows, self.batch_size, self.samples_per_epoch, self.epochs,
            samples=self.samples - self.soaked_samples,
            seconds=self.total_seconds - self.soaked_seconds,
            first_samples=self._first_samples,
            first_step_seconds=self.first_step_seconds,
            paused=self.paused,
        )  # fmt: skip
        return timing_columns(run) | self.observer.columns(
            self.samples - self._warmup_samples,
            self.steady_seconds,
            SUSPENDED if self.paused else None,
        )

    def _open_window(self, start: float) -> None:
        self._window_start = start
        self._window_steps = 0
        self._window_samples = 0
        self._window_work = 0

    def _close_window(self) -> Window:
        self.synchronize()
        end = self.now()
        paused = self.pauses.since_last()
        self.paused |= paused
        window = Window(
            steps=self._window_steps,
            samples=self._window_samples,
            work=self._window_work,
            seconds=end - self._window_start,
            whole=self._window_samples == self._window_steps * self.batch_size,
            paused=paused,
        )
        self._open_window(end)
        return window


def probe_device(
    train_step: Callable[[], int],
    synchronize: Callable[[], None],
    team: Team = Team(),  # noqa: B008 - it is immutable
    longest: float = math.inf,
) -> float:
    """Work per second of `train_step` on batches that lie ready in the host's memory.

    Args:
        train_step: one optimizer update; returns its work, as `Clock.step` takes it.
        team: the ranks that train together; its work counts once for each.
        longest: seconds that it may take; two windows it takes at least.
    """
    tell("without loading")
    train_step()
    synchronize()
    start = time.perf_counter()
    for _ in range(WARMUP_STEPS):
        train_step()
    synchronize()
    of_a_step = (time.perf_counter() - start) / WARMUP_STEPS
    steps = int(team.agree(max(1, round(WINDOW_SECONDS / of_a_step))))
    pauses = Pauses()
    done, spent, windows, time_is_up = 0, 0.0, 0, False
    while not time_is_up:
        start = time.perf_counter()
        work = sum(train_step() for _ in range(steps))
        synchronize()
        taken = time.perf_counter() - start
        if not pauses.since_last():
            done, spent, windows = done + work, spent + taken, windows + 1
        tell("without loading")  # and no detail: no bar shows one
        time_is_up = bool(team.agree(spent >= min(PROBE_SECONDS, longest) and windows > 1))
    return team.size * done / spent
