"""The edit request: validated once, never re-checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nas_plugin.errors import (
    EmptyPromptError,
    EmptySubjectError,
    EmptyTargetError,
    PlaceholderError,
    RequestError,
    SubjectNotFoundError,
)
from nas_plugin.reading import short

_WORD_EDGE = r"(?<!\w){}(?!\w)"
_EMPTY = {"prompt": EmptyPromptError, "subject": EmptySubjectError, "target": EmptyTargetError}


@dataclass(frozen=True)
class EditRequest:
    """One fact to write: after `prompt`, with `subject` in it, the model should say `target`.

    `prompt` holds the subject itself ("The mother tongue of Danielle Darrieux is") or one `{}` in its place.

    Attributes:
        prompt: Prompt text with the subject filled in.
        subject: Subject as it stands in the prompt.
        target: What the edited model should say next, without a leading space.
        start: Character offset of the subject in the prompt.
        id: Name of the request in reports.

    Raises:
        EmptyPromptError: The prompt is empty or blank.
        EmptySubjectError: The subject is.
        EmptyTargetError: The target is.
        SubjectNotFoundError: The subject does not occur in the prompt.
        PlaceholderError: The prompt holds more than one placeholder.
        RequestError: A field is not a string.
    """

    prompt: str
    subject: str
    target: str
    id: str | None = None
    start: int = -1

    def __post_init__(self) -> None:
        """Validate, fill in the placeholder and locate the subject."""
        for name, empty in _EMPTY.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                raise RequestError(
                    f"{self._name()}: {name} is a {type(value).__name__} ({short(value)}); give one string."
                )
            if not value.strip():
                raise empty(f"{self._name()}: {name} is empty; give prompt, subject and target_new as text.")
        prompt, start = self._located()
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "subject", self.subject.strip())
        object.__setattr__(self, "target", self.target.strip())
        object.__setattr__(self, "start", start)

    @classmethod
    def from_mapping(cls, record: Mapping[str, Any], id: str | None = None) -> EditRequest:
        """Read EasyEdit's flat request or ROME's `requested_rewrite` record.

        Args:
            record: Keys `prompt`, `subject`, `target_new` (a string, or ROME's `{"str": ...}`); others are ignored.
            id: Name in reports; by default the record's `case_id`.

        Returns:
            The validated request.

        Raises:
            RequestError: It is no record, or a key is missing.
        """
        rewrite = record.get("requested_rewrite", record) if isinstance(record, Mapping) else record
        if not isinstance(rewrite, Mapping):
            raise RequestError(
                f"a request is a {type(rewrite).__name__} ({str(rewrite)[:60]!r}); give an EditRequest, or a record with "
                "prompt, subject and target_new."
            )
        missing = [key for key in ("prompt", "subject", "target_new") if rewrite.get(key) is None]
        if missing:
            raise RequestError(
                f"request {record.get('case_id', '')!s}: no {', '.join(missing)} among its keys "
                f"({', '.join(map(str, rewrite))}); "
                "every edit needs prompt, subject and target_new."
            )
        target = rewrite["target_new"]
        if isinstance(target, Mapping):
            target = target.get("str")
        name = id if id is not None else record.get("case_id")
        return cls(rewrite["prompt"], rewrite["subject"], target, None if name is None else str(name))

    @classmethod
    def restored(cls, prompt: str, subject: str, target: str, id: str | None, start: int) -> EditRequest:
        """Make a request that was validated before, its subject where it was found then.

        Args:
            prompt: Prompt with the subject filled in.
            subject: Subject.
            target: Target.
            id: Name.
            start: Character offset of the subject.

        Returns:
            The request.
        """
        request = cls(prompt, subject, target, id)
        object.__setattr__(request, "start", start)
        return request

    @property
    def end(self) -> int:
        """Character offset just after the subject."""
        return self.start + len(self.subject)

    def _name(self) -> str:
        return f"request {self.id}" if self.id is not None else f"request {str(self.prompt)[:60]!r}"

    def _located(self) -> tuple[str, int]:
        prompt, subject = self.prompt, self.subject.strip()
        holes = prompt.count("{}")
        if holes > 1:
            raise PlaceholderError(
                f"{self._name()}: {holes} placeholders in {prompt!r}; write '{{}}' once, for the subject."
            )
        if holes == 1 and subject not in prompt:
            start = prompt.index("{}")
            return prompt[:start] + subject + prompt[start + 2 :], start
        # A whole word first: "Ann" must not be found in "Annual report of Ann is".
        match = re.search(_WORD_EDGE.format(re.escape(subject)), prompt) or re.search(re.escape(subject), prompt)
        if match is None:
            raise SubjectNotFoundError(
                f"{self._name()}: subject {subject!r} does not occur in prompt {prompt!r}; write the subject exactly as in "
                "the prompt (case matters) or put '{}' in its place."
            )
        return prompt, match.start()


def as_requests(
    requests: Iterable[EditRequest | Mapping[str, Any]] | EditRequest | Mapping[str, Any],
) -> list[EditRequest]:
    """Validate one request or many, in order.

    Args:
        requests: Requests or records; see `EditRequest.from_mapping`.

    Returns:
        The validated requests.

    Raises:
        RequestError: One of them is unusable, or there are none.
    """
    if isinstance(requests, EditRequest | Mapping):
        requests = [requests]
    checked = [item if isinstance(item, EditRequest) else EditRequest.from_mapping(item) for item in requests]
    if not checked:
        raise RequestError("no requests were given; a step needs at least one.")
    return checked
