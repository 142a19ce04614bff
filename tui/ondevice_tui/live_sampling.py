"""Behind the rate screen: further pairs are sampled while a person rates, and the reward model says
of which it knows least.

Both go through `ondevice worker`, one model at a time: what is not to be used next is closed first,
and where the memory would not do, nothing is loaded and that is said. All of it runs on the app's
event loop, between two waits for the worker; votes never wait for it.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ondevice.common.errors import UserError
from ondevice.common.remembered import Remembered
from ondevice.inference.pair_sampling import Judge, Plan, judge_of, prompts
from ondevice.preferences.database import Ratings
from ondevice.preferences.distinct import TRIES, DistinctResponses
from ondevice.preferences.rating_queue import uncertainty
from ondevice.preferences.votes import QueueEntry, Response, is_settled
from ondevice.runs.folder import RunFolder
from ondevice_tui.ratings_thread import RatingsThread
from ondevice_tui.worker_client import ModelProcess, Refused, WorkerGone, memory_warning

# pairs that wait for the rater: sampling rests at so many, and begins again below so few
AHEAD, LOW = (12, 4)
# prompts that one model answers before another takes its place: loading it takes seconds
TOGETHER = 4
SLOTS = 4  # of an item at most: draws are numbered by prompt, slot and try
SCORED = 32  # pairs scored before sampling gets its turn
READS = "the reward model reads"
IDLE_S = 1.0  # between two looks at whether there is something to do


def rater_name(remembered: Remembered | None = None) -> str:
    """Who rates: the name that was given last, else the login name; a name for anybody where the
    system knows none."""
    if remembered is not None:
        given = remembered.get("rater", _is_name)
    else:
        given = None
    if given:
        return str(given)
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "me"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= 200 and not is_settled(value)


def _look_different(chosen: DistinctResponses) -> bool:
    """Whether a person sees that the responses differ: not by the space around them alone."""
    texts = {response.text.strip() for response in chosen.responses}
    return len(texts) == len(chosen.responses)


class NoRoom(Exception):
    """The memory would not do for this model."""


class Pairing:
    """What goes on behind one rate screen. `ratings` gives its open database, `rater` who rates,
    `run` the run; `news` is called when there are new pairs, or something else is to be told
    (`told`), `say` with what is to be read once."""

    def __init__(
        self,
        ratings: Callable[[], RatingsThread | None],
        rater: Callable[[], str],
        run: Callable[[], RunFolder | None],
        news: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._ratings, self._rater, self._run, self._news, self._say = (
            ratings,
            rater,
            run,
            news,
            say,
        )
        self.plan: Plan | None = None
        self.judge: Judge | None = None
        self.scores: dict[int, list[float]] = {}
        self.doubts: dict[int, float] = {}
        self.told = ""
        self._process: ModelProcess | None = None
        self._prompts: list[list[dict[str, Any]]] = []
        self._next = 0  # the number of the next prompt
        self._filling = True  # sampling is not at rest
        self._silent = False  # the judge could not be used: sampling goes on without it

    def begin(self, plan: Plan | None) -> None:
        """Samples by this plan from now on; None: no more."""
        self.plan, self._prompts, self._filling = plan, [], True
        self._tell("")

    def forget(self) -> None:
        """Another run, or another reward model: what was known of the pairs holds no more."""
        self.judge, self._silent = None, False
        self.scores.clear()
        self.doubts.clear()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    busy = await self._score_some() or await self._sample_some()
                except NoRoom as reason:
                    busy = False
                    self._tell(f"nothing is loaded beside what runs: {reason}")
                except UserError as problem:  # the database: busy, full, damaged
                    busy = False
                    self._tell(f"✗ {problem}")
                if not busy:
                    await asyncio.sleep(IDLE_S)
        finally:
            await self._close()

    def kill(self) -> None:
        """At once, where nobody can wait."""
        if self._process is not None:
            self._process.kill()

    # the reward model

    async def _score_some(self) -> bool:
        """Scores some of what waits; True where something was done."""
        ratings, judge, rater = self._ratings(), self._look_for_judge(), self._rater()
        if ratings is None or judge is None or self._silent:
            return self._read_no_more()
        waiting, voted = await ratings.do(
            lambda found: (found.waiting(rater), found.repeatable(rater)[0])
        )
        normal = [w.item for w in waiting if w.kind == "normal"]
        wanted = [item for item in (*normal, *voted) if item not in self.scores]
        if not wanted or (
            self._sampling(waiting) and len(wanted) <= AHEAD
        ):  # what takes turns must load each time
            return self._read_no_more()
        self._tell(f"{READS} {len(wanted)} pairs")
        try:
            process = await self._use(judge.folder)
            for number in wanted[:SCORED]:
                if self._ratings() is not ratings:  # another run was chosen meanwhile
                    return self._read_no_more()
                item = await ratings.do(partial(Ratings.item, id=number))
                await self._score(
                    process, number, item.messages, [response.text for response in item.responses]
                )
        except WorkerGone as gone:
            self._silent = True
            self._tell(f"✗ the reward model cannot be used: {gone}")
            return False
        if len(wanted) <= SCORED:
            self._tell("")
        return True

    def _read_no_more(self) -> bool:
        """Says no longer that pairs are read; False."""
        if self.told.startswith(READS):
            self._tell("")
        return False

    async def _score(
        self, process: ModelProcess, number: int, messages: Sequence[Any], texts: Sequence[str]
    ) -> None:
        try:
            self.scores[number] = await process.score(messages, texts)
        except (
            Refused
        ):  # too long for it, or a chat that its template does not take: it has no opinion
            self.scores[number] = []
            return
        self.doubts[number] = uncertainty(self.scores[number])

    def _look_for_judge(self) -> Judge | None:
        run = self._run()
        if run is not None:
            found = judge_of(run, self.judge)
        else:
            found = None
        if found != self.judge:
            self.forget()
            self.judge = found
        return found

    # further pairs

    async def _sample_some(self) -> bool:
        """Samples the next pairs where few are left; True where something was done."""
        plan, ratings, run = self.plan, self._ratings(), self._run()
        if plan is None or ratings is None or run is None:
            return False
        rater = self._rater()
        if not self._sampling(await ratings.do(lambda found: found.waiting(rater))):
            self._tell("the next pairs are ready")
            return False
        try:
            if not self._prompts:
                found, remarks = await asyncio.to_thread(prompts, plan.data, run)
                if self.plan is not plan or self._ratings() is not ratings:
                    return False
                self._prompts = found
                for remark in remarks:
                    self._say(remark)
                items = await ratings.do(lambda found: found.items(plan.batch))
                done = [int(item.meta.get("number", -1)) for item in items]
                self._next = 1 + max(done, default=-1)
            asked = self._prompts[self._next :][: 1 if len(plan.folders) == 1 else TOGETHER]
            if not asked:
                return self._end("every prompt was answered once; g gives others")
            self._tell("writing the next answers …")
            written = await self._write(plan, asked)
        except (WorkerGone, Refused, UserError) as reason:
            if self.plan is plan:
                return self._end(f"✗ no more pairs: {reason}")
            return False
        if self.plan is plan:
            await self._queue(plan, asked, written)
        return True

    def _sampling(self, waiting: Sequence[QueueEntry]) -> bool:
        """Whether further pairs are wanted now."""
        ahead = sum(not w.skipped for w in waiting)
        self._filling = self.plan is not None and (ahead < AHEAD if self._filling else ahead < LOW)
        return self._filling

    def _end(self, why: str) -> bool:
        self.plan = None
        self._tell(why)
        return False

    async def _write(
        self, plan: Plan, asked: Sequence[list[dict[str, Any]]]
    ) -> list[DistinctResponses]:
        """The responses to each prompt, by slot; a model is loaded once for all of them."""
        chosen = [DistinctResponses(plan.responses) for _ in asked]
        for folder in plan.folders:
            process = await self._use(folder)
            for n, messages in enumerate(asked):
                for slot, writer in enumerate(plan.slots):
                    if writer.folder == folder:
                        await self._draw(process, plan, self._next + n, messages, slot, chosen[n])
        return chosen

    async def _draw(
        self,
        process: ModelProcess,
        plan: Plan,
        number: int,
        messages: list[dict[str, Any]],
        slot: int,
        chosen: DistinctResponses,
    ) -> None:
        """Fills a slot of the prompt of this number with a response that no other slot has, where
        some tries give one.
        """
        if not process.ready.get("chat"):
            raise Refused("this model has no chat format: take one from sft on")
        writer = plan.slots[slot]
        sampling = {
            "temperature": writer.temperature,
            "max_new_tokens": plan.max_new_tokens,
            "seed": plan.seed,
        }
        for turn in range(TRIES):
            place = (number * SLOTS + slot) * TRIES + turn
            done = await process.write(messages, sampling, place)
            text = str(done.get("text", ""))
            if chosen.take(Response(text, writer.name, {"temperature": writer.temperature}), slot):
                break

    async def _queue(
        self,
        plan: Plan,
        asked: Sequence[list[dict[str, Any]]],
        written: Sequence[DistinctResponses],
    ) -> None:
        """Those that differ go into the database, all or none of this round."""
        ratings = self._ratings()
        if ratings is None:
            return
        first = self._next

        def work(database: Ratings) -> None:
            with database.transaction():
                for n, (messages, chosen) in enumerate(zip(asked, written, strict=True)):
                    if chosen.complete and _look_different(chosen):
                        database.add(
                            plan.batch,
                            messages,
                            chosen.responses,
                            meta={"number": first + n},
                            seed=plan.seed,
                        )

        await ratings.do(work)
        self._next += len(asked)
        self._news()

    # the one process

    async def _use(self, folder: str) -> ModelProcess:
        """The process of this model. Raises NoRoom, and WorkerGone where it cannot be opened."""
        if self._process is not None and self._process.path == folder:
            return self._process
        await self._close()
        warning = await asyncio.to_thread(memory_warning, folder)
        if warning:
            raise NoRoom(warning)
        self._process = process = ModelProcess(folder)
        try:
            await process.open()
        except WorkerGone:
            await self._close()
            raise
        return process

    async def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.cancel()
            await process.close()

    def _tell(self, text: str) -> None:
        if text != self.told:
            self.told = text
            self._news()
