"""Shows a job live until it ends: one changing line on a terminal, elsewhere a line for each change."""

import queue
import shutil
import sys
import time

from demo import progress
from demo.clock import Clock
from demo.kube import Kube
from demo.progress import End, Job, View
from toolbox import say

_NEWS_SECONDS = 20  # without a terminal: a line at least this often
_PATIENCE_SECONDS = 900  # without any change of what the job shows; a slow machine may take as long as it needs


class Screen:
    """Shows views: rewrites one line on a terminal, else prints changes."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = (-1e9, "", -1)  # when, phase, percent
        self._trouble = ""

    def show(self, view: View) -> None:
        elapsed = int(time.monotonic() - self._began)
        text = f"  [{elapsed // 60:2d}:{elapsed % 60:02d}] {view.line}"
        if view.trouble != self._trouble:
            self._trouble = view.trouble
            if view.trouble:
                self.settle()
                say.line(f"         waiting: {view.trouble}")
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r\x1b[K" + text[:width])
            sys.stderr.flush()
        elif self._news(view):
            say.line(text)
            self._last_line = (time.monotonic(), view.phase, view.percent)

    def phase_over(self, view: View, seconds: float) -> None:
        """Leaves the last line of a phase on the screen."""
        if self._live:
            self.settle()
        elif seconds >= 1:
            say.line(f"         {view.phase} took {seconds:.0f} s")

    def settle(self) -> None:
        if self._live:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _news(self, view: View) -> bool:
        when, phase, percent = self._last_line
        return view.phase != phase or view.percent >= percent + 10 or time.monotonic() - when >= _NEWS_SECONDS


def until_end(kube: Kube, name: str, namespace: str, clock: Clock, not_revision: str = "") -> Job:
    """Follows a job until it serves, is complete, suspended or failed; returns its last state.

    `not_revision`: the revision of an earlier run, whose end does not count. Raises Problem when nothing changes any more.
    """
    screen = Screen()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    shown: View | None = None
    last: View | None = None
    since = time.monotonic()
    while time.monotonic() < deadline:
        # A watch may end at any time, for example when the API server restarts: then a new one begins.
        with kube.watch("finetunejob", name, namespace) as changes:
            job: Job | None = None
            while time.monotonic() < deadline:
                try:
                    job = changes.get(timeout=1)
                    if job is None:
                        break
                except queue.Empty:
                    pass
                if job is None:
                    continue
                view = progress.view(job)
                stale = bool(not_revision) and job.get("status", {}).get("revision") == not_revision
                if shown and view.phase != shown.phase and not stale:
                    now = time.monotonic()
                    if shown.end is End.RUNNING:
                        screen.phase_over(shown, now - since)
                        clock.note(f"  {shown.phase}", now - since)
                    since = now
                if view != last:
                    last, deadline = view, time.monotonic() + _PATIENCE_SECONDS
                if not stale:
                    shown = view
                    screen.show(view)
                    if view.end is not End.RUNNING:
                        screen.settle()
                        return job
        time.sleep(1)
    screen.settle()
    raise say.Problem(
        f"the job has shown nothing new for {_PATIENCE_SECONDS // 60} minutes. It continues in the cluster:"
        f" kubectl -n {namespace} describe finetunejob {name}"
    )
