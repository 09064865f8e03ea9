"""Checkpoints on disk: complete or absent, verified when loaded, and checked against the model they are loaded into."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from orbax.checkpoint import v1 as orbax

from jaxop._files import json_checksum, read_json
from jaxop._pytree import leaf_names
from jaxop.training._files import local_path, set_aside
from jaxop.training.processes import from_first, gathered, spans_processes

State = TypeVar("State")

Leaf = Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
"""A leaf of a state, or its shape and dtype."""

_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_STEP = re.compile(r"step_([0-9]{8,})")
_SCRATCH = re.compile(_STEP.pattern + r"\.tmp")
_PATTERN = re.compile(r"[*?\[\]\\\ud800-\udfff]")  # patterns of Orbax, and bytes that are not UTF-8


class Manifest(TypedDict):
    """The record of a checkpoint.

    Attributes:
        step: number of the step.
        seconds: time spent training so far.
        metrics: validation metrics at this step.
        leaves: dtype and shape of every leaf of the state, by name.
        files: bytes and SHA-256 of every file.
        settings: the settings of the run, if they were given.
    """

    step: int
    seconds: float
    metrics: dict[str, float]
    leaves: dict[str, str]
    files: dict[str, list[int | str]]
    settings: NotRequired[dict[str, object]]


class DamagedCheckpointError(Exception):
    """Error of a checkpoint whose files are not those that were saved; the message names the first bad file."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run: ``step_00000200/`` and so on in one directory.

    Each holds the arrays in the format of Orbax, and a manifest: step, validation metrics, settings, shape and
    dtype of every leaf, and the SHA-256 of every file. A checkpoint is assembled under another name, and renamed
    when it is complete and flushed to disk. A run that is killed at any moment therefore leaves only whole checkpoints.
    Loading first compares every file with the manifest, and so finds every truncated, altered or missing file.
    One process at a time writes to a directory; any number may read. If several processes hold a state, each saves and
    loads its own part: all of them make the same call, with a directory that all of them see.

    Attributes:
        directory: directory of the steps, made when the first one is saved.
        keep_last: number of newest steps that are kept.
        best_metric: metric whose lowest value marks one more step that is kept. None keeps only the newest steps.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxop import training
        >>> checkpoints = training.Checkpoints(tempfile.mkdtemp(), keep_last=2, best_metric="error")
        >>> for step, error in [(10, 0.3), (20, 0.1), (30, 0.2), (40, 0.4)]:
        ...     checkpoints.save(step, {"w": jnp.full(3, step)}, metrics={"error": error})
        >>> checkpoints.steps, checkpoints.best
        ([20, 30, 40], 20)
        >>> print(checkpoints.restore({"w": jnp.zeros(3, jnp.int32)}, step=20)["w"])
        [20 20 20]
    """

    directory: str | os.PathLike[str]
    keep_last: int = 2
    best_metric: str | None = None

    def __post_init__(self):
        local_path(self.directory, "directory")

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in ascending order; other contents of the directory are ignored."""
        found = (_STEP.fullmatch(path.name) for path in Path(self.directory).glob("step_*") if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    @property
    def latest(self) -> int | None:
        """The newest step, or None if nothing was saved."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """The step of the lowest `best_metric`, the earliest if several are equal; None if it was never recorded."""
        scores: list[tuple[float, int]] = []
        for step in self.steps:
            with contextlib.suppress(DamagedCheckpointError):
                metrics = self.manifest(step)["metrics"]
                if self.best_metric in metrics:
                    scores.append((metrics[self.best_metric], step))
        return min(scores)[1] if scores else None

    def path(self, step: int) -> Path:
        """Returns the directory of a step."""
        return Path(self.directory) / f"step_{step:08d}"

    def manifest(self, step: int) -> Manifest:
        """Returns the record of a step.

        Raises:
            DamagedCheckpointError: if the manifest is missing, was altered or belongs to another step.
        """
        path = self.path(step) / _MANIFEST
        try:
            sealed = read_json(path)
            content = sealed["content"]
            intact = sealed["sha256"] == json_checksum(content) and content.keys() >= Manifest.__required_keys__
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
        if not intact:
            raise DamagedCheckpointError(f"{path} is not what was saved: its checksum differs.")
        if content["step"] != step:
            raise DamagedCheckpointError(f"{path} is not of step {step}: it was saved at step {content['step']}.")
        return content

    def save(
        self,
        step: int,
        state: object,
        *,
        metrics: Mapping[str, float] | None = None,
        seconds: float = 0.0,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Saves a state, and deletes the steps that are neither among the newest nor the best.

        A file or link at the path of the step is set aside, see `restore_latest`.

        Args:
            step: number of the step, which was not saved before.
            state: any pytree of arrays, which may include random keys.
            metrics: validation metrics at this step; metrics that are not finite are omitted.
            seconds: time spent training so far.
            settings: settings of the run, as JSON; kept in the manifest.

        Raises:
            FloatingPointError: if an array holds NaN or infinity; nothing is written. The part ``opt_state`` may hold
                infinity, by which optimisers of Optax mark values that are not known yet.
            FileExistsError: if the step was saved before.

        Cost: one copy of the state to disk, read back once for the checksums.
        """
        final = self.path(step)
        leaves = _named_leaves(state)
        once = _once(leaves)
        if once(final.is_dir):
            raise FileExistsError(f"{final} exists; a saved step is never overwritten.")
        bad = first_nonfinite(leaves)
        if bad is not None:
            raise FloatingPointError(f"step {step} is not saved: {bad} holds NaN or infinity.")
        scratch = Path(once(lambda: str(self._scratch(final))))
        together = spans_processes(leaves)
        with _context(together), _literal(scratch, together=together) as folder:
            orbax.save(str(folder / _ARRAYS), leaves)

        def seal() -> None:
            content: Manifest = {
                "step": step,
                "seconds": seconds,
                "metrics": {name: value for name, value in (metrics or {}).items() if math.isfinite(value)},
                "leaves": {name: _describe(leaf) for name, leaf in leaves.items()},
                "files": {name: _flush_and_hash(scratch / name) for name in _files(scratch)},
            }
            if settings is not None:
                content["settings"] = dict(settings)
            manifest = scratch / _MANIFEST
            manifest.write_text(json.dumps({"sha256": json_checksum(content), "content": content}, indent=1))
            _flush_and_hash(manifest)
            scratch.rename(final)
            _flush_directory(final.parent)
            self._delete_superseded()

        once(seal)

    def _scratch(self, final: Path) -> Path:
        """Makes the directory in which a checkpoint is assembled, and removes what interrupted runs left."""
        root = Path(self.directory).resolve()
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob("step_*.tmp"):
            if _SCRATCH.fullmatch(leftover.name):
                _remove(leftover)
        if os.path.lexists(final):
            warnings.warn(f"{final} is not a directory; it was set aside as {set_aside(final)}.", stacklevel=4)
        scratch = root / f"{final.name}.tmp"
        scratch.mkdir()
        return scratch

    def restore(self, like: State, *, step: int | None = None, parts: Sequence[str] | None = None) -> State:
        """Returns the state saved at a step, with the structure, shapes, dtypes and shardings of ``like``.

        Variables that are not trained (the part ``other``, such as the statistics of `jaxop.operators.Standardized`)
        are cast to JAX's default precision, float32 or float64.

        Args:
            like: pytree of arrays or `jax.ShapeDtypeStruct`, equal to the saved state except for the values.
            step: number of the step; None means the newest.
            parts: top-level fields of the saved state that ``like`` consists of. None means all fields.

        Raises:
            FileNotFoundError: if the step does not exist.
            DamagedCheckpointError: if a file was changed or lost after it was saved.
            ValueError: if a leaf is unknown to ``like``, missing in the checkpoint, or has another shape or
                dtype; the message names the leaves.
            OSError: if Orbax cannot read files although they are intact.

        Cost: the checkpoint is read twice, once for its checksums.
        """
        wanted = _named_leaves(like)
        once = _once(wanted)
        if step is None:
            step = once(lambda: self.latest)
        if step is None or not once(lambda: step in self.steps):
            raise FileNotFoundError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self.directory}; "
                f"steps there: {self.steps or 'none'}."
            )
        manifest, damage = once(lambda: self._verified(step))
        if damage:
            raise DamagedCheckpointError(damage)
        saved = {
            name: description
            for name, description in manifest["leaves"].items()
            if parts is None or name.split(".")[0] in parts
        }
        self._check_fit(step, saved, {name: _describe(leaf) for name, leaf in wanted.items()})
        together = spans_processes(wanted)
        context = _context(together)
        context.pytree.loading.partial_load = parts is not None
        path = self.path(step).resolve()
        try:
            with context, _literal(path, together=together) as folder:
                loaded = orbax.load(str(folder / _ARRAYS), {name: _abstract(leaf) for name, leaf in wanted.items()})
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise OSError(
                f"{path} is intact, but Orbax cannot read it ({reason}); copy the run to a directory with a plain name "
                "on another file system."
            ) from error
        return jax.tree.unflatten(jax.tree.structure(like), [loaded[name] for name in wanted])

    def restore_latest(self, like: State) -> tuple[int, State]:
        """Returns the newest undamaged step and its state; warns of damaged steps and sets them aside.

        A step that is set aside is renamed to ``step_….damaged``; nothing is deleted.

        Args:
            like: see `restore`.

        Raises:
            FileNotFoundError: if nothing was saved, or every checkpoint is damaged.
            ValueError: see `restore`.
        """
        damaged = []
        once = _once(_named_leaves(like))
        while (step := once(lambda: self.latest)) is not None:
            try:
                return step, self.restore(like, step=step)
            except DamagedCheckpointError as error:
                path = self.path(step)
                aside = once(lambda path=path: str(set_aside(path)))
                damaged.append(aside)
                warnings.warn(
                    f"checkpoint of step {step} is damaged: {error} It was set aside as {aside}; "
                    "the previous checkpoint is tried.",
                    UserWarning,
                    stacklevel=2,
                )
        if damaged:
            raise FileNotFoundError(
                f"no undamaged checkpoint in {self.directory}; set aside: {', '.join(damaged)}. "
                "Start a new run in another directory."
            )
        raise FileNotFoundError(
            f"nothing to resume from: {self.directory} holds no checkpoint. Check the path, or start a new run in "
            "another directory."
        )

    def verify(self, step: int) -> Manifest:
        """Compares every file of a step with its manifest, and returns the manifest.

        Raises:
            DamagedCheckpointError: if a file is missing, truncated or altered; the message names it.
        """
        manifest, path = self.manifest(step), self.path(step)
        for name, (size, checksum) in manifest["files"].items():
            file = path / name
            if not file.is_file():
                raise DamagedCheckpointError(f"{file} is missing.")
            if file.stat().st_size != size:
                raise DamagedCheckpointError(f"{file} has {file.stat().st_size} bytes instead of {size}.")
            if _hash(file) != checksum:
                raise DamagedCheckpointError(f"{file} is not what was saved: its checksum differs.")
        return manifest

    def _verified(self, step: int) -> tuple[Manifest | None, str]:
        """Returns the manifest of a step, or what is damaged."""
        try:
            return self.verify(step), ""
        except DamagedCheckpointError as error:
            return None, str(error)

    def _check_fit(self, step: int, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        faults = [
            f"  {name}: missing in the checkpoint, expected {wanted[name]}" for name in wanted if name not in saved
        ]
        faults += [f"  {name}: unknown to this model, saved as {saved[name]}" for name in saved if name not in wanted]
        faults += [
            f"  {name}: saved as {saved[name]}, expected {wanted[name]}"
            for name in wanted
            if name in saved and not _fits(name, saved[name], wanted[name])
        ]
        if faults:
            more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
            raise ValueError(
                f"{self.path(step)} does not fit the model and optimiser that it is restored into:\n"
                + "\n".join(faults[:10])
                + f"{more}\nBuild them from the config that the run was started with."
            )

    def _delete_superseded(self) -> None:
        best = None if self.best_metric is None else self.best
        for step in self.steps[: -self.keep_last]:
            if step != best:
                doomed = self.path(step).with_suffix(".tmp")  # renamed in one go and then removed
                self.path(step).rename(doomed)
                _remove(doomed)


def first_nonfinite(leaves: Mapping[str, Leaf]) -> str | None:
    """Returns the name of the first array that holds NaN, or infinity outside ``opt_state``; None if all are finite.

    Every process looks at the parts on its own devices. If there are others, all processes make the same call.
    """

    def is_bad(name: str, leaf: Any) -> bool:
        test = np.isnan if name.startswith("opt_state.") else lambda array: ~np.isfinite(array)
        return any(test(piece).any() for piece in _pieces(leaf))

    found = [name for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact) and is_bad(name, leaf)]
    everywhere = gathered(found[:1], "the test for values that are not finite") if spans_processes(leaves) else [found]
    order = list(leaves)
    return min(itertools.chain(*everywhere), key=order.index, default=None)


def _pieces(leaf: Leaf) -> Iterator[np.ndarray]:
    """Yields an array in the pieces that devices hold, one copy of each, so that it is never whole on the host."""
    if not isinstance(leaf, Array):
        yield np.asarray(leaf)
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            yield np.asarray(shard.data)


def _named_leaves(tree: object) -> dict[str, Leaf]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _once(leaves: Mapping[str, Leaf]) -> Callable[[Callable[[], Any]], Any]:
    """Returns how to call a function on files: on process 0 for all that hold parts of the leaves, or right here."""
    if not spans_processes(leaves):
        return lambda function: function()
    return lambda function: from_first(function, "the files of a checkpoint")


def _context(together: bool) -> orbax.Context:
    """Returns the settings of Orbax for all processes together, or for this process alone."""
    context = orbax.Context()
    if not together and jax.process_count() > 1:
        context.multiprocessing.primary_host = jax.process_index()
        context.multiprocessing.active_processes = {jax.process_index()}
    return context


def _describe(leaf: Leaf) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _fits(name: str, saved: str, wanted: str) -> bool:
    """Tells whether a leaf can be restored: unchanged, or as a constant of the model in JAX's default precision."""
    precisions = {"float32", "float64"}
    both = {description.partition("[")[0] for description in (saved, wanted)}
    same_shape = saved.partition("[")[2] == wanted.partition("[")[2]
    return saved == wanted or (name.startswith("other.") and same_shape and both == precisions)


def _abstract(leaf: Leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _literal(directory: Path, *, together: bool) -> Iterator[Path]:
    """Yields a path to a directory that Orbax cannot take for a pattern: the path itself, or a link."""
    if not (match := _PATTERN.search(str(directory))):
        yield directory
        return
    if together:  # a link is seen by one process only
        raise ValueError(
            f"several processes cannot save to {str(directory)!r}, because it holds the character {match[0]!r}; "
            "give another directory."
        )
    with tempfile.TemporaryDirectory(prefix="jaxop-") as folder:
        if match := _PATTERN.search(folder):
            raise ValueError(
                f"the directory for temporary files, {tempfile.gettempdir()}, must not hold the character "
                f"{match[0]!r}; set TMPDIR to another directory."
            )
        link = Path(folder) / "checkpoint"
        link.symlink_to(directory, target_is_directory=True)
        yield link


def _remove(path: Path) -> None:
    """Removes a directory with its contents, or a file or link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush_and_hash(file: Path) -> list[int | str]:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        return [stream.tell(), checksum]


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
