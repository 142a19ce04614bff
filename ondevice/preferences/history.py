"""What has been said so far: votes to look at, filter and change, what raters disagree on, and how
that is settled.

A settlement is a vote of `settled:NAME`. It counts in place of the raters' own votes when pairs are
learned from (`pairs.py`) and leaves these as they are, so that agreement stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ondevice.common.errors import UserError
from ondevice.preferences.database import Ratings
from ondevice.preferences.pairs import labels, pairs_of
from ondevice.preferences.votes import SETTLED, Item, Vote, is_settled, is_simulated

Filter = Literal["all", "mine", "flagged", "noted", "ties", "disagreements"]
FILTERS: tuple[Filter, ...] = ("mine", "flagged", "noted", "ties", "disagreements", "all")
MOST = 2000  # entries that are listed, the newest
QUESTION = 300  # characters of a question in a list
TAKEN_BACK = "taken back"  # the note of a flag that takes an earlier one back


@dataclass(frozen=True)
class Entry:
    """An item of which somebody has said something. `vote`: the newest one of those that the filter
    asks for, None where there is only a flag or a note; `others`: all other live votes on it;
    `flagged_by`: raters; `settled`: what was decided where they disagree; `at`: when the newest of all
    this was said."""

    item: int
    question: str
    vote: Vote | None
    others: tuple[Vote, ...]
    flagged_by: tuple[str, ...]
    note: str
    disagreed: bool
    settled: Vote | None
    at: float

    @property
    def flagged(self) -> bool:
        return bool(self.flagged_by)

    def fits(self, wanted: Filter, rater: str) -> bool:
        if wanted == "mine":
            return self.vote is not None and self.vote.rater == rater
        if wanted == "flagged":
            return self.flagged
        if wanted == "noted":
            return bool(self.note)
        if wanted == "ties":
            votes = [self.vote, *self.others]
            return any(vote is not None and vote.outcome == "tie" for vote in votes)
        if wanted == "disagreements":
            return self.disagreed
        return True

    def told_to(self, rater: str, wanted: Filter) -> list[Vote]:
        """The votes that this rater may see. Of a pair that they have not rated, none: it would
        sway them; where people disagree all, for it is to be settled."""
        if self.vote is None:
            return []
        if wanted == "disagreements" or self.settled is not None:
            return [self.vote, *self.others]
        if self.vote.rater == rater:
            return [self.vote]
        return []


@dataclass(frozen=True)
class Marks:
    """How many items are flagged, and have a note, by anybody; `open`: disagreements that are not
    settled; `pairs`: what all votes together give to learn from, -1 where it was not counted; `at`:
    the newest row of any vote then."""

    flagged: int
    noted: int
    open: int
    pairs: int = -1
    at: int = -1


def history(ratings: Ratings, rater: str, wanted: Filter = "all") -> list[Entry]:
    """What was said, the newest first; the votes of programs are left out. `rater`: whose vote
    stands first where several have voted."""
    rows = ratings.votes(simulated=False)
    live = [vote for vote in ratings.live_votes(simulated=False) if vote.action == "vote"]
    votes: dict[int, list[Vote]] = {}
    for vote in live:
        votes.setdefault(vote.item, []).append(vote)
    flags, notes = _flags_and_notes(rows)
    disputed = set(disagreements(ratings, settled=True))
    newest: dict[int, float] = {vote.item: vote.at for vote in live}
    for row in rows:
        if row.action in ("flag", "note") and (row.item in flags or row.item in notes):
            newest[row.item] = max(newest.get(row.item, 0.0), row.at)
    found = []
    for item in sorted(newest, key=lambda number: (-newest[number], -number)):
        own, others, settled = _of_item(votes.get(item, []), rater)
        entry = Entry(
            item,
            "",
            own,
            tuple(others),
            tuple(flags.get(item, ())),
            notes.get(item, ""),
            item in disputed,
            settled,
            newest[item],
        )
        if entry.fits(wanted, rater):
            found.append(entry)
        if len(found) == MOST:
            break
    return _with_questions(ratings, found)


def marks(ratings: Ratings, before: Marks, *, pairs: bool = False) -> Marks:
    """Counts for a line; of people's votes alone. `before` where nothing has been said since. With
    `pairs` these are counted too, which reads every item."""
    at = int(ratings.rows("SELECT ifnull(max(id), 0) FROM vote")[0][0])
    if before.at == at and (before.pairs >= 0 or not pairs):
        return before
    flags, notes = _flags_and_notes(ratings.votes(simulated=False))
    count = len(pairs_of(ratings)) if pairs else -1
    return Marks(len(flags), len(notes), len(disagreements(ratings)), count, at)


def disagreements(ratings: Ratings, *, settled: bool = False) -> list[int]:
    """Ids of items on which people disagree, in order; those that are settled with `settled` alone."""
    several = ratings.rows(
        "SELECT item FROM live JOIN item ON item.id = item WHERE action = 'vote' "
        "AND kind = 'normal' GROUP BY item HAVING count(*) > 1"
    )
    wanted = {row["item"] for row in several}
    votes: dict[int, list[Vote]] = {}
    decided = set()
    for vote in ratings.live_votes(simulated=False):
        if vote.item not in wanted or vote.action != "vote":
            continue
        if is_settled(vote.rater):
            decided.add(vote.item)
        else:
            votes.setdefault(vote.item, []).append(vote)
    return sorted(
        item for item, said in votes.items() if disagree(said) and (settled or item not in decided)
    )


def votes_on(ratings: Ratings, item: int) -> list[Vote]:
    """What people say of an item, without settlements."""
    rows = ratings.rows("SELECT DISTINCT rater FROM live WHERE item = ? ORDER BY rater", (item,))
    names = [row["rater"] for row in rows]
    found = []
    for name in names:
        vote = ratings.voted(item, name)
        if vote is not None and not is_settled(name) and not is_simulated(name):
            found.append(vote)
    return found


def disagree(votes: Sequence[Vote]) -> bool:
    """Whether two of these votes on one item say different things of the same two answers."""
    said: dict[tuple[int, int], Any] = {}
    for vote in votes:
        for pair, label in labels(vote).items():
            if said.setdefault(pair, label) != label:
                return True
    return False


def settler(rater: str) -> str:
    """The name under which this rater settles."""
    return f"{SETTLED}{rater}"


def check_name(rater: str) -> str:
    """A rater's name, without space around it. Raises UserError for one that means something
    else."""
    name = rater.strip()
    if not name or is_settled(name):
        raise UserError(
            f"{rater!r} is not a rater's name",
            where="rater",
            hint=f"a name that does not begin with {SETTLED}",
        )
    return name


def newest_of(ratings: Ratings, rater: str) -> Vote | None:
    """The newest live vote, skip or settlement of this rater: what an undo takes back."""
    found = [ratings.newest(name) for name in (rater, settler(rater))]
    return max((vote for vote in found if vote is not None), key=lambda v: v.id, default=None)


def flag(ratings: Ratings, item: int, rater: str, session: str) -> bool:
    """Flags an item, or takes this rater's own flag back where there is one; returns whether they
    flag it now. What others have flagged stays so."""
    with ratings.transaction():
        mine = rater in flagged_by(ratings, item)
        ratings.flag(item, rater, session, TAKEN_BACK if mine else None)
    return not mine


def clear_flags(ratings: Ratings, item: int, rater: str, session: str) -> tuple[str, ...]:
    """Takes everybody's flags on an item back, since somebody has looked at it; returns whose. It is
    kept as a row of `settled:NAME`, beside theirs. Who flags it again flags it."""
    with ratings.transaction():
        by = flagged_by(ratings, item)
        if by:
            ratings.flag(item, settler(rater), session, TAKEN_BACK)
    return by


def flagged_by(ratings: Ratings, item: int) -> tuple[str, ...]:
    """Whose flags stand on an item."""
    rows = [row for row in ratings.votes(simulated=False) if row.item == item]
    return tuple(_flags_and_notes(rows)[0].get(item, ()))


def gold_hit(item: Item, vote: Vote) -> bool | None:
    """Whether a vote names the answer that is known to be the better one; None where none is."""
    if item.kind != "gold":
        return None
    return vote.ranking[:1] == (item.gold,)


def gold_score(ratings: Ratings, rater: str) -> tuple[int, int]:
    """(hits, votes) of this rater on pairs whose better answer is known and told after the vote: by
    the first vote on each, since a later one knows."""
    rows = ratings.rows(
        "SELECT min(vote.id) AS first, vote.item FROM vote JOIN item ON item.id = vote.item "
        "JOIN live ON live.item = vote.item AND live.rater = vote.rater AND live.action = 'vote' "
        "WHERE vote.rater = ? AND vote.action = 'vote' AND kind = 'gold' GROUP BY vote.item",
        (rater,),
    )
    first = {row["first"] for row in rows}
    hits = 0
    for vote in ratings.votes(raters=[rater]) if first else ():
        if vote.id in first:
            hits += bool(gold_hit(ratings.item(vote.item), vote))
    return hits, len(rows)


def _flags_and_notes(rows: Sequence[Vote]) -> tuple[dict[int, list[str]], dict[int, str]]:
    """(flagged items with those who have flagged them, the newest note of each)."""
    flags: dict[int, list[str]] = {}
    notes: dict[int, str] = {}
    for row in rows:
        if row.action == "flag" and is_settled(row.rater):
            flags.pop(row.item, None)
        elif row.action == "flag":
            by = [rater for rater in flags.pop(row.item, []) if rater != row.rater]
            if row.note != TAKEN_BACK:
                by.append(row.rater)
            if by:
                flags[row.item] = by
        elif row.action == "note" and row.note:
            notes[row.item] = row.note
    return flags, notes


def _of_item(votes: Sequence[Vote], rater: str) -> tuple[Vote | None, list[Vote], Vote | None]:
    """(the vote that stands for the item: this rater's, else the newest; the others; what settles
    them)."""
    settled = [vote for vote in votes if is_settled(vote.rater)]
    said = [vote for vote in votes if not is_settled(vote.rater)]
    first = next((vote for vote in said if vote.rater == rater), None)
    if first is None and said:
        first = said[-1]
    others = [vote for vote in said if vote is not first]
    return first, others, settled[-1] if settled else None


def _with_questions(ratings: Ratings, entries: Sequence[Entry]) -> list[Entry]:
    questions = {}
    for entry in entries:
        last = (ratings.item(entry.item).messages or [{}])[-1]
        questions[entry.item] = _beginning(last)
    return [Entry(**{**vars(entry), "question": questions[entry.item]}) for entry in entries]


def _beginning(message: Mapping[str, Any]) -> str:
    return str(message.get("content", ""))[:QUESTION]
