"""Logs with one row per step."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from flowmatch_rl.checks import MissingFileError, UserError, check_word
from flowmatch_rl.data.layouts.arrays import BLOCK_ROWS, by_number, existing
from flowmatch_rl.data.layouts.base import Rows
from flowmatch_rl.data.layouts.columns import ColumnLayout, expanded
from flowmatch_rl.data.layouts.episodes import Outcomes, Steps, episode_ends, find_steps, refuse_resumed
from flowmatch_rl.data.layouts.ranges import ActionRange
from flowmatch_rl.data.layouts.times import find_cuts, read_times, refuse_disorder
from flowmatch_rl.data.tables.columns import require_columns, row_name
from flowmatch_rl.data.tables.reading import is_table
from flowmatch_rl.data.tables.text import REMARKS
from flowmatch_rl.data.transitions.store import StoreInfo
from flowmatch_rl.schema import ActionBounds


@dataclass(frozen=True)
class EpisodeLog(ColumnLayout):
    """A log with one row per step: what was observed, the action taken there, and perhaps a reward and flags.

    Each row arrives where the next row of its episode starts, so that the last row of an episode is an observation
    alone, whose action may be missing. Episodes end where the column ``episode`` changes, with each file, after a flag,
    where ``time`` goes back, and where it leaves its even spacing by more than a half. With ``episode``, rows of an
    episode that go on after a flag are refused.

    Args:
        path: A file that ``TableFile`` reads, with ends of episodes in it; or a folder or a pattern such as
            ``logs/*.csv`` of several, in each of which another episode begins. Files with numbers in their names are
            read in their order.
        observations: Columns of the observation, which give its entries their names. The name of a matrix of a
            ``.npz`` file stands for all of its columns, which are called ``name[0]``, ``name[1]`` and so on.
        actions: Columns of the action.
        reward: Column of the reward; without it and ``constant_reward`` the data set has no rewards.
        constant_reward: Reward of every step.
        terminated: Column that is 1 where the episode reached a terminal state.
        truncated: Column that is 1 where the episode ended for another reason.
        outcomes: The row that holds the reward and flags of an action: its own row, ``action``, or the row that it led
            to, ``arrival``.
        episode: Column with the number or name of the episode.
        time: Column of times, as numbers, or as dates with times of day, which are read in seconds.
        units: Units of columns by their names, as text such as ``rad``; by default those of a line below the names.
        separator: Character between the values of a text file; found from its first lines if None.
        decimal: Decimal sign of a text file, ``.`` or ``,``; found from its numbers if None.
        action_low: Value in the log that becomes the action -1, one for all dimensions or one for each; by default the
            smallest of the log.
        action_high: Value in the log that becomes the action 1; by default the largest of the log.
        clip_actions: Whether to move actions beyond the bounds to them; otherwise they are refused.

    Raises:
        UserError: If options contradict each other.
    """

    constant_reward: float | None = field(default=None, kw_only=True)
    truncated: str | None = field(default=None, kw_only=True)
    outcomes: Outcomes = field(default="action", kw_only=True)
    episode: str | None = field(default=None, kw_only=True)
    time: str | None = field(default=None, kw_only=True)
    clip_actions: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word(("action", "arrival"), outcomes=self.outcomes)
        for name in ("observations", "actions"):
            if not getattr(self, name):
                raise UserError(f"{name} must name at least one column")
        if self.reward is not None and self.constant_reward is not None:
            raise UserError(
                f"got reward {self.reward!r} and constant_reward {self.constant_reward}, wanted one or none"
            )
        if self.clip_actions and self.action_low is None:
            raise UserError("clip_actions needs action_low and action_high to clip actions to")

    def describe(self) -> StoreInfo:
        """Read the log once, which checks all of it."""
        found = self._survey
        info = self.description(
            found.head.observations,
            len(found.head.actions),
            found.num_steps,
            has_rewards=self.reward is not None or self.constant_reward is not None,
            remarks=found.remarks,
        )
        info = replace(info, action_low=found.bounds.low, action_high=found.bounds.high)
        return self.named(info, found.head.frame, found.head.observations, found.head.actions)

    def rows(self) -> Iterator[Rows]:
        """Read the transitions, file by file; one file is in memory at a time."""
        found = self._survey
        files = self._files()
        for log in [found.head] if len(files) == 1 else (self._open(file, found.interval) for file in files):
            for rows in self._blocks(log):
                action = np.clip(rows.action, found.bounds.low, found.bounds.high) if self.clip_actions else rows.action
                yield replace(rows, action=action, bounds=found.bounds)

    @functools.cached_property
    def _survey(self) -> "_Survey":
        """What there is in all files."""
        head, actions, interval = None, None, None
        counts, remarks, files = Counter[str](), list[str](), self._files()
        for file in files:
            log = self._open(file, interval)
            if head is None or actions is None:
                # One file is kept, which saves reading it twice; of several there may be more than memory holds.
                head = log if len(files) == 1 else replace(log, frame=log.frame.iloc[:1].copy())
                actions = ActionRange(log.actions, self.bounds(len(log.actions)))
            if (log.observations, log.actions) != (head.observations, head.actions):
                raise UserError(f"the matrices of {log.table} are of other sizes than those of {head.table}")
            interval = log.interval
            counts.update(log.counts)
            remarks += [remark for remark in log.frame.attrs.get(REMARKS, ()) if remark not in remarks]
            for rows, start in zip(self._blocks(log), parts(log.steps.start), strict=True):
                actions.add(rows.action, functools.partial(log.row_name, start))
        if head is None or actions is None or not actions.num_rows:
            raise UserError(f"{self.path!r} holds no transitions: no episode in it has two rows")
        self._require_ends(counts)
        remarks += self._remarks(counts, interval) + actions.remark(self.clip_actions, self.path)
        return _Survey(head, actions.num_rows, actions.bounds, interval, tuple(remarks))

    def _files(self) -> list[Path]:
        """The files of the log in their order."""
        wanted = "a table, a folder of tables, or a pattern such as logs/*.csv"
        if not self._is_several:
            return [existing(self.path, wanted)]
        folder, root = Path(self.path), Path(Path(self.path).anchor)
        held = folder.iterdir() if folder.is_dir() else root.glob(str(folder.relative_to(root)))
        files = [file for file in held if is_table(file) and not file.name.startswith(".")]
        if not files:
            raise MissingFileError(f"{self.path!r} holds no tables; wanted {wanted}")
        return sorted(files, key=lambda file: by_number(str(file)))

    @property
    def _is_several(self) -> bool:
        """Whether the path is not that of one file."""
        path = Path(self.path)
        return not is_table(path) if path.is_dir() else not path.exists() and any(sign in self.path for sign in "*?[")

    def _require_ends(self, counts: Mapping[str, int]) -> None:
        """Refuse one file without any sign of where its episodes end."""
        if self._is_several or any((self.episode, self.terminated, self.truncated, counts["gaps"], counts["restarts"])):
            return
        time = f", and its times in {self.time!r} are all evenly spaced" if self.time else ""
        raise UserError(
            f"{self.path!r} does not tell where its episodes end{time}; name the column `episode`, or the flags "
            "`terminated` or `truncated`, or give a folder or a pattern such as logs/*.csv of files with one episode"
        )

    def _remarks(self, counts: Mapping[str, int], interval: float | None) -> list[str]:
        """What of the log is left out or cut, a phrase each."""
        elsewhere = "; if the flagged rows hold it, set outcomes to 'arrival'" if self.outcomes == "action" else ""
        said = {
            "lost": f"terminations are left out, as no row after the flag holds the terminal state{elsewhere}",
            "single": "episodes of one row are left out, which make no transition",
            "restarts": f"episodes begin where {self.time!r} goes back",
            "gaps": f"episodes are cut where rows are not about {interval:g} apart in {self.time!r}"
            if interval
            else "",
        }
        return [f"{counts[name]:,} {what}" for name, what in said.items() if counts[name]]

    def _open(self, file: Path, interval: float | None) -> "_Log":
        """Read a file and find its transitions.

        Args:
            file: The file.
            interval: Spacing of the times, if it is known from files before.
        """
        frame, table = self.load(file), f"the log {str(file)!r}"
        observations, actions = (expanded(names, frame) for names in (self.observations, self.actions))
        others = [self.reward, self.terminated, self.truncated, self.episode, self.time]
        require_columns(frame, [*observations, *actions, *(name for name in others if name is not None)], table)
        blank = np.logical_and.reduce([frame[name].isna().to_numpy() for name in actions])
        cut = episode_ends(frame, self.episode, table)
        unused = blank | cut if self.outcomes == "action" else np.append(True, cut[:-1])
        terminated, truncated = (self._marks(frame, name, unused, table) for name in (self.terminated, self.truncated))
        closing = blank
        if self.episode is not None:
            refuse_resumed(frame, self.episode, terminated | truncated, cut, self.outcomes, table)
            closing = np.ones(len(frame), bool)
        steps = find_steps(terminated, truncated, cut, closing, self.outcomes)
        counts = {"gaps": 0, "restarts": 0}
        if self.time is not None:
            cuts = find_cuts(read_times(frame, self.time, table), steps.last, interval)
            refuse_disorder(frame, self.time, self.episode, cuts, table)
            interval, counts = cuts.interval, {"gaps": len(cuts.gaps), "restarts": len(cuts.backward)}
            cut[cuts.gaps] = cut[cuts.backward] = True
            steps = find_steps(terminated, truncated, cut, closing, self.outcomes)
        counts |= {"single": steps.num_single, "lost": steps.num_lost}
        return _Log(file, frame, observations, actions, steps, interval, counts)

    def _marks(self, frame: pd.DataFrame, name: str | None, unused: np.ndarray, table: str) -> np.ndarray:
        """Flags of a column, boolean, shape (N,), which may be missing in rows that hold the outcome of no action."""
        marks = np.zeros(len(frame), bool)
        if name is not None:
            held = ~(unused & frame[name].isna().to_numpy())
            marks[held] = self.flags(frame.loc[held, [name]], name, table)
        return marks

    def _blocks(self, log: "_Log") -> Iterator[Rows]:
        """The transitions of a file, a part of them at a time."""
        steps = log.steps
        ends = zip(
            *(parts(rows) for rows in (steps.start, steps.outcome, steps.terminated, steps.truncated)), strict=True
        )
        for start, outcome, terminated, truncated in ends:
            first = start[0]
            part = log.frame.iloc[first : start[-1] + 2]
            observation = self.numbers(part, log.observations, log.table).astype(np.float32)
            reward = np.full(len(start), self.constant_reward or 0.0)
            if self.reward is not None:
                reward = self.numbers(part[[self.reward]].iloc[outcome - first], [self.reward], log.table)[:, 0]
            yield Rows(
                place=log.table,
                observation=observation[start - first],
                action=self.numbers(part[log.actions].iloc[start - first], log.actions, log.table),
                reward=reward.astype(np.float32),
                next_observation=observation[start - first + 1],
                terminated=terminated,
                truncated=truncated,
            )


@dataclass(frozen=True)
class _Log:
    """One file of a log.

    Attributes:
        file: The file.
        frame: Its table.
        observations: Columns of the observation.
        actions: Columns of the action.
        steps: Its transitions.
        interval: Spacing of its times, or None.
        counts: How often something was left out or cut.
    """

    file: Path
    frame: pd.DataFrame
    observations: list[str]
    actions: list[str]
    steps: Steps
    interval: float | None
    counts: Mapping[str, int]

    @property
    def table(self) -> str:
        """Phrase that names the file."""
        return f"the log {str(self.file)!r}"

    def row_name(self, rows: np.ndarray, place: int) -> str:
        """What one of some rows is called."""
        return f"{row_name(self.frame, int(rows[place]))} of {str(self.file)!r}"


@dataclass(frozen=True)
class _Survey:
    """What there is in all files of a log.

    Attributes:
        head: The first file; with its first row alone unless it is the only one.
        num_steps: Transitions.
        bounds: Bounds of the action.
        interval: Spacing of the times, or None.
        remarks: What a reader should know, a phrase each.
    """

    head: _Log
    num_steps: int
    bounds: ActionBounds
    interval: float | None
    remarks: tuple[str, ...]


def parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    """An array, a part of its rows at a time."""
    return (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))
