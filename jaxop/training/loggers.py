"""Destinations of metrics: JSON lines, a progress display, TensorBoard, Weights & Biases."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

from jaxop.training._files import write_in_one_go

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

METRICS_FILE = "metrics.jsonl"
"""Name of the metrics file in a run directory."""


@runtime_checkable
class Logger(Protocol):
    """Destination of metrics; `fit` calls the three methods in this order."""

    def start(self, run_dir: Path, settings: Mapping[str, object], step: int) -> None:
        """Opens the destination for a run that continues after ``step``, which is 0 for a new run.

        Metrics of later steps that it already holds belong to lost work, which will be repeated.
        """
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a step of training or of a validation set."""
        ...

    def close(self) -> None:
        """Closes the destination."""
        ...


class JsonLines:
    """One JSON object per row in ``metrics.jsonl``: ``{"step": 3, "loss": 0.21, ...}``.

    Every row reaches the operating system before the next step begins, and a resumed run first removes the
    rows after the step that it resumes from. However a run ends, no row is lost or doubled. Lines that are not rows
    stay, unless they were cut off at the end of the file. A value that is not finite becomes null.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxop import training
        >>> run = pathlib.Path(tempfile.mkdtemp())
        >>> for first in (0, 1):  # killed after step 2, resumed after step 1
        ...     logger = training.JsonLines()
        ...     logger.start(run, {}, first)
        ...     for step in (first + 1, first + 2):
        ...         logger.log(step, {"loss": 1 / step})
        ...     logger.close()
        >>> [row["step"] for row in training.read_metrics(run)]
        [1, 2, 3]
    """

    _file: TextIO

    def start(self, run_dir: Path, settings: Mapping[str, object], step: int) -> None:
        """Removes the rows after ``step`` and opens the file to append."""
        path = run_dir / METRICS_FILE
        *lines, last = _lines(path)
        if _row(last) is not None:  # otherwise it is empty or was cut off
            lines.append(last)
        kept = [line for line in lines if (row := _row(line)) is None or row["step"] <= step]
        write_in_one_go(path, b"".join(line + b"\n" for line in kept))
        self._file = path.open("a")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row."""
        row = {"step": step} | {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of a run's ``metrics.jsonl``; skips lines that are not rows, such as one cut off by a crash.

    Args:
        run_dir: the run directory. If it does not hold a metrics file, the list is empty.

    Returns:
        One dict per row, each with the integer ``"step"``; the other values are numbers or None.
    """
    return [row for line in _lines(Path(run_dir) / METRICS_FILE) if (row := _row(line)) is not None]


def _lines(path: Path) -> list[bytes]:
    """Returns the lines of a file; the last entry is the text after the last line break."""
    return path.read_bytes().split(b"\n") if path.is_file() else [b""]


def _row(line: bytes) -> dict[str, Any] | None:
    """Returns the metrics in a line, or None if it is not a row of metrics."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    return row if all(value is None or isinstance(value, int | float) for value in row.values()) else None


class Progress:
    """Loss, steps per second and time left: a rich bar on a terminal, plain lines elsewhere.

    Args:
        interval_s: smallest number of seconds between two plain lines.
        note: a line to print at the start; "" prints none.
    """

    def __init__(self, *, interval_s: float = 10.0, note: str = ""):
        self._interval, self._note = interval_s, note
        self._bar: Bar | None = None

    def start(self, run_dir: Path, settings: Mapping[str, object], step: int) -> None:
        """Opens the display."""
        training = settings["training"]
        assert isinstance(training, Mapping)
        self._total = training["steps"]
        self._first: tuple[int, float] | None = None
        self._printed = -math.inf
        if self._note:
            self._print(self._note)
        try:
            from rich import progress
        except ImportError:
            return
        columns = (
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[status]}"),
            progress.TimeRemainingColumn(),
        )
        bar = progress.Progress(*columns, refresh_per_second=4)
        if bar.console.is_terminal or bar.console.is_jupyter:
            self._bar = bar
            self._task = bar.add_task("", total=self._total, completed=step, status="")
            bar.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Updates the display; validation metrics get a separate line."""
        if "loss" not in metrics:
            self._print(f"step {step}  " + "  ".join(f"{name} {value:.3e}" for name, value in metrics.items()))
            return
        now = time.monotonic()
        status, left = f"loss {metrics['loss']:.3e}", ""
        if self._first is None:  # the time until now includes the compilation
            self._first = step, now
        else:
            rate = (step - self._first[0]) / max(now - self._first[1], 1e-9)
            status += f"  {rate:.3g} steps/s"
            left = f"  {_clock(round((self._total - step) / rate))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        elif now - self._printed >= self._interval:
            self._printed = now
            self._print(f"step {step}/{self._total}  {status}{left}")

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, line: str) -> None:
        if self._bar is not None:
            console = self._bar.console
            console.print(_printable(line, console.encoding), highlight=False, markup=False, emoji=False)
        else:
            sys.stdout.write(_printable(line, getattr(sys.stdout, "encoding", None)) + "\n")
            sys.stdout.flush()


def _printable(line: str, encoding: str | None) -> str:
    """Returns the line without characters that the terminal cannot show, as validation sets may have any name."""
    encoding = encoding or "utf-8"
    return line.encode(encoding, "replace").decode(encoding)


def _clock(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


class TensorBoard:
    """Scalars for TensorBoard in ``tensorboard/`` of the run directory, through tensorboardX."""

    def start(self, run_dir: Path, settings: Mapping[str, object], step: int) -> None:
        """Opens the event file; events after ``step`` are purged from the display.

        Raises:
            ImportError: if tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'jaxop[loggers]'.") from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)
        self._writer.add_text("config", f"```json\n{json.dumps(dict(settings), indent=2)}\n```", step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WeightsAndBiases:
    """Metrics and config for Weights & Biases; a resumed run continues the online run of the same directory.

    Args:
        project: name of the project.
    """

    def __init__(self, project: str):
        self._project = project

    def start(self, run_dir: Path, settings: Mapping[str, object], step: int) -> None:
        """Starts or continues the online run; the file ``wandb_id`` of the run directory holds its id.

        Raises:
            ImportError: if wandb is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WeightsAndBiases needs wandb: pip install 'jaxop[loggers]'.") from error
        id_file = run_dir / "wandb_id"
        known = id_file.read_text(errors="replace").strip() if step and id_file.is_file() else None
        self._run = wandb.init(
            project=self._project,
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(settings),
            id=known or None,
            resume="must" if known else None,
        )
        id_file.write_text(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics; the service ignores steps that it already has."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finishes the online run."""
        self._run.finish()
