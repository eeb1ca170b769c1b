"""The program around the screen: the background session's thread, signals, and an orderly end."""

import os
import signal
import threading
from types import FrameType

from textual.app import App

from labeling.sessions.labeling_session import LabelingSession
from labeling.terminal.background import BackgroundSession, Report
from labeling.terminal.ranking import RankingScreen
from rlhf.errors import UserError

LAST_SECONDS = 5.0
"""How long the end waits for the database."""


class LabelerApp(App[None], inherit_bindings=False):
    """One labeler at work."""

    ENABLE_COMMAND_PALETTE = False
    CSS = "Screen { background: ansi_default; color: ansi_default; }"
    BINDINGS = [("ctrl+c,ctrl+q", "leave", "")]

    def __init__(self, session: LabelingSession) -> None:
        super().__init__(ansi_color=True)
        self.session = session
        self.background = BackgroundSession(session, self._deliver)
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="background session", daemon=True)
        self._server_pid = os.getppid()

    def on_mount(self) -> None:
        self._ranking = RankingScreen(self.session, self.background)
        self.push_screen(self._ranking)
        self._thread.start()
        if self.is_web:
            self.set_interval(2.0, self._end_with_the_server)

    def action_leave(self) -> None:
        self.exit()

    def finish(self) -> bool:
        """Let the background session end its work; whether everything is stored."""
        self.background.close()
        if self._thread.is_alive():
            self._thread.join(LAST_SECONDS)
        return not self.background.num_waiting

    def _work(self) -> None:
        try:
            self.background.run()
        except BaseException as error:  # a mistake of ours: it ends the program, with its traceback
            self.failure = error
            self.call_from_thread(self.exit)

    def _deliver(self, report: Report) -> None:
        if self._running:
            self._ranking.post_message(RankingScreen.Reported(report))

    def _end_with_the_server(self) -> None:
        if os.getppid() != self._server_pid:
            self.exit()


def run_screen(session: LabelingSession) -> None:
    """Work in the full screen until the labeler quits.

    Raises:
        UserError: what was entered last could not be stored.
    """
    app = LabelerApp(session)
    if "TEXTUAL_DRIVER" not in os.environ:
        for name in ("COLUMNS", "LINES"):  # where a shell exports them, they hide that a terminal was resized
            os.environ.pop(name, None)

    def hung_up(number: int, _: FrameType | None) -> None:
        """The terminal is gone, and whatever is written to it may block: store what there is, and end."""
        threading.Thread(target=_end, args=(app, 128 + number)).start()

    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, hung_up)
    app.run()
    stored = app.finish()
    if app.failure is not None:
        raise app.failure
    if not stored:
        raise UserError(
            "the last keys could not be stored", where=session.project.where, fix="The database refuses."
        )


def _end(app: LabelerApp, status: int) -> None:
    try:
        if app.finish():
            app.session.leave()
    finally:
        os._exit(status)
