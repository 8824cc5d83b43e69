"""What becomes of the requests of a step before anything is solved: bad ones, known ones, and those about the same fact."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import ConflictError, RequestError
from nas_plugin.history import REPLACED, TAKEN_BACK, UNDONE, Entry, Fact, History, digest_of, fact_of
from nas_plugin.report import KNOWN, REJECTED, SKIPPED, WRITTEN
from nas_plugin.request import EditRequest

logger = logging.getLogger(__name__)

STOP, CONTINUE = "stop", "continue"
SKIP, ERROR = "skip", "error"

Requests = Iterable[EditRequest | Mapping[str, Any]] | EditRequest | Mapping[str, Any]


@dataclass
class Item:
    """One request of a step.

    Attributes:
        id: Id of the edit.
        request: The request; None if the record is none.
        record: What was given.
        status: As in `EditReport`; "written" until something else is found.
        reason: Why it will not be written.
        replaces: Edits that it takes the place of.
    """

    id: str
    request: EditRequest | None
    record: EditRequest | Mapping[str, Any]
    status: str = WRITTEN
    reason: str | None = None
    replaces: tuple[str, ...] = ()

    @property
    def case(self) -> str | None:
        """Its case id."""
        if self.request is not None:
            return self.request.id
        name = self.record.get("case_id") if isinstance(self.record, Mapping) else None
        return None if name is None else str(name)

    def drop(self, status: str, reason: str) -> None:
        """Take it out of the step.

        Args:
            status: "skipped", "rejected" or "known".
            reason: Why.
        """
        self.status, self.reason, self.replaces = status, reason, ()


def read(requests: Requests, check: Callable[[EditRequest], None], on_reject: str) -> list[Item]:
    """Validate the requests of a step.

    Args:
        requests: Requests or records.
        check: Raises a `RequestError` for a request that this model cannot take.
        on_reject: "stop" raises for a bad one, "continue" rejects it and goes on.

    Returns:
        One item per request, in order; ids are digests still.

    Raises:
        RequestError: One of them is unusable, or there are none.
    """
    if isinstance(requests, EditRequest | Mapping):
        requests = [requests]
    items: list[Item] = []
    for record in requests:
        try:
            request = record if isinstance(record, EditRequest) else EditRequest.from_mapping(record)
            check(request)
        except RequestError as error:
            if on_reject == STOP:
                raise
            logger.warning("an edit is rejected: %s", error)
            items.append(Item(_digest(record), None, record, REJECTED, error.message))
        else:
            items.append(Item(_digest(request), request, record))
    if not items:
        raise RequestError("no requests were given; a step needs at least one.")
    return items


def admit(items: Sequence[Item], history: History, on_conflict: str) -> None:
    """Find out which requests are known already or about the same fact as others; in place.

    An edit that the history has, by its digest, is known: nothing is done, so that a stream can be given again after it was
    interrupted. Of two edits of one fact with different targets the later stands ("replace"), the earlier ("skip"), or neither
    is allowed ("error"); a second one with the same target is never written again.

    Args:
        items: What `read` returned.
        history: Edits so far.
        on_conflict: "replace", "skip" or "error".

    Raises:
        ConflictError: Two edits are about one fact and the policy is "error".
    """
    within: dict[Fact, Item] = {}
    taken: set[str] = set()
    assigned: set[str] = set()
    for item in items:
        known = history.latest(item.id)
        if known is not None and item.id not in taken and _answered(known, item, history):
            item.id = known.id
            item.drop(KNOWN, f"this edit was carried out before ({known.status})")
            logger.warning("the edit %s is known (%s): nothing is done", known.id, known.status)
            continue
        taken.add(item.id)
        item.id = _free(item.id, history, assigned)
        assigned.add(item.id)
        if item.request is None or item.status != WRITTEN:
            continue
        fact = fact_of(item.request)
        if (earlier := within.get(fact)) is not None:
            _settle(item, earlier, on_conflict)
        elif (standing := history.standing(fact)) is not None:
            _settle_with_history(item, standing.id, standing.target, on_conflict)
        if item.status == WRITTEN:
            within[fact] = item


def _answered(known: Entry, item: Item, history: History) -> bool:
    """Tell a stream that is given again from a request that is made anew."""
    if known.status in {UNDONE, TAKEN_BACK}:
        return False
    if known.status != REPLACED or item.case is not None:
        return True
    # Without a case id the same words may well be a new edit that goes back to an earlier target.
    standing = history.standing(known.fact) if known.fact is not None else None
    return standing is None or standing.target == known.target


def _settle(item: Item, earlier: Item, on_conflict: str) -> None:
    """Decide between two requests of one step."""
    ours, theirs = item.request, earlier.request
    same = ours is not None and theirs is not None and ours.target == theirs.target
    if on_conflict == ERROR:
        raise _conflict(item, earlier.id, None if theirs is None else theirs.target, "in the same step")
    if same:
        _say(item, earlier.id, "has the same target", "the second is skipped")
        item.drop(SKIPPED, f"duplicate of {earlier.id} in the same step")
    elif on_conflict == SKIP:
        _say(item, earlier.id, "contradicts it", "the second is skipped")
        item.drop(SKIPPED, f"contradicts {earlier.id} in the same step")
    else:
        _say(item, earlier.id, "contradicts it", "the later one is written")
        item.replaces = earlier.replaces
        earlier.drop(SKIPPED, f"replaced by {item.id} in the same step")


def _settle_with_history(item: Item, other: str, target: str | None, on_conflict: str) -> None:
    """Decide between a request and an edit that stands."""
    if on_conflict == ERROR:
        raise _conflict(item, other, target, "earlier")
    if item.request is not None and item.request.target == target:
        _say(item, other, "has the same target", "it is skipped")
        item.drop(SKIPPED, f"duplicate of {other}")
    elif on_conflict == SKIP:
        _say(item, other, "contradicts it", "it is skipped")
        item.drop(SKIPPED, f"contradicts {other}")
    else:
        _say(item, other, "contradicts it", "the new one replaces it")
        item.replaces = (other,)


def _say(item: Item, other: str, how: str, what: str) -> None:
    prompt = item.request.prompt if item.request is not None else ""
    logger.warning("the edit %s (%r) is about the same fact as %s and %s: %s", item.id, prompt, other, how, what)


def _conflict(item: Item, other: str, target: str | None, where: str) -> ConflictError:
    given = item.request
    prompt, new = ("", "") if given is None else (given.prompt, given.target)
    return ConflictError(
        f"edit {item.id}: {prompt!r} -> {new!r} is about the same fact as {other}, {where}, which says {target!r}. Leave "
        "one of them out, or set on_conflict to 'replace' (the later stands) or 'skip' (the earlier stands)."
    )


def _free(base: str, history: History, assigned: Collection[str]) -> str:
    number, name = 1, base
    while history.find(name) is not None or name in assigned:
        number += 1
        name = f"{base}-{number}"
    return name


def _digest(record: EditRequest | Mapping[str, Any]) -> str:
    if isinstance(record, EditRequest):
        return digest_of(record.id, record.prompt, record.subject, record.target)
    rewrite = record.get("requested_rewrite", record)
    case = record.get("case_id")
    if not isinstance(rewrite, Mapping):
        return digest_of(None if case is None else str(case), rewrite, None, None)
    given = (rewrite.get(key) for key in ("prompt", "subject", "target_new"))
    return digest_of(None if case is None else str(case), *given)
