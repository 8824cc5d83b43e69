"""One record of a stream while it is read: typed access to its fields, with errors that say where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nas_plugin.errors import PlaceholderError, RecordError, SubjectNotFoundError
from nas_plugin.evaluation.cases import Ask
from nas_plugin.request import EditRequest

# A whole word first, as EditRequest looks for it.
_IGNORING_CASE = (r"(?<!\w){}(?!\w)", "{}")


@dataclass(frozen=True)
class Record:
    """A record, or an object inside one.

    A field that is null counts as absent: that is how Arrow tables say that a record lacks it.

    Attributes:
        fields: The parsed JSON object.
        number: Number of the record in its file, from 0.
        source: The file or data set, for messages.
        unanswered: Takes the fields that ask something but give no answer; shared by all parts of the record.
        path: Where the object stands in its record, with a trailing dot; empty for the record itself.
        case: The record's `case_id`, or its number where it has none.
    """

    fields: Mapping[str, Any]
    number: int
    source: str
    unanswered: list[str]
    path: str = ""
    case: str = ""

    @classmethod
    def of(cls, value: Any, number: int, source: str, unanswered: list[str]) -> Record:
        """Take up a parsed record.

        Args:
            value: What the file holds at this place.
            number: Its number, from 0.
            source: The file or data set.
            unanswered: See there.

        Returns:
            The record.

        Raises:
            RecordError: It is no object, or its `case_id` is neither an integer nor text.
        """
        if not isinstance(value, Mapping):
            raise RecordError(f"{source}, record {number} is a {type(value).__name__} ({value!r:.60}); give an object.")
        record = cls(value, number, source, unanswered)
        case = value.get("case_id")
        if case is None:
            return replace(record, case=str(number))
        if isinstance(case, bool) or not isinstance(case, int | str) or not str(case).strip():
            raise record.error("case_id", f"is {case!r:.60}; give a number or a name, or leave it out")
        return replace(record, case=str(case))

    def error(self, name: str, problem: str) -> RecordError:
        """Make the error of a field.

        Args:
            name: The field, as it is called in this object.
            problem: What is wrong with it and what to give instead.

        Returns:
            The error, to be raised.
        """
        case = f" (case {self.case})" if self.case and self.case != str(self.number) else ""
        message = f"{self.source}, record {self.number}{case}, {self.path}{name}: {problem}."
        # Half a surrogate pair, which JSON can hold, cannot be written to a log or a terminal.
        return RecordError(message.encode("utf-8", "backslashreplace").decode("utf-8"))

    def has(self, name: str) -> bool:
        """Tell whether a field is there and not null.

        Args:
            name: The field.

        Returns:
            Whether it is.
        """
        return self.fields.get(name) is not None

    def text(self, name: str) -> str:
        """Read a text that must be there.

        Args:
            name: The field.

        Returns:
            The text as it stands.

        Raises:
            RecordError: It is missing, not a string, blank, or not valid Unicode.
        """
        return self._text(self._value(name), name)

    def texts(self, name: str) -> tuple[str, ...]:
        """Read one text or a list of them, lists in it flattened.

        Args:
            name: The field.

        Returns:
            The texts, in order.

        Raises:
            RecordError: The field is missing, or a leaf of it is no text.
        """
        return tuple(self._text(leaf, name) for leaf in _leaves(self._value(name)))

    def answers(self, name: str) -> tuple[str, ...]:
        """Read an answer and its aliases: a text, a list of aliases, or a list of answers that are lists of aliases.

        Args:
            name: The field.

        Returns:
            The answers that are not blank, without spaces around them, each once. Perhaps none.

        Raises:
            RecordError: The field is missing, or a leaf of it is not a string.
        """
        found: dict[str, None] = {}
        for leaf in _leaves(self._value(name)):
            if isinstance(leaf, str) and not leaf.strip():
                continue
            found[self._text(leaf, name).strip()] = None
        return tuple(found)

    def first_answer(self, name: str) -> str | None:
        """Read the answer that comes first in a field that may be absent or blank.

        Args:
            name: The field.

        Returns:
            The answer, if there is one.

        Raises:
            RecordError: A leaf of the field is not a string.
        """
        return next(iter(self.answers(name)), None) if self.has(name) else None

    def asks(self, prompt: str, *answers: str) -> tuple[Ask, ...]:
        """Read a question (or several) and its answers.

        Args:
            prompt: The field with the prompt, or with a list of prompts that have the same answer.
            answers: The fields with the answer and with its aliases. Those after the first may be absent.

        Returns:
            The asks: none where the data gives no answer, which `unanswered` then tells.

        Raises:
            RecordError: A field is malformed.
        """
        prompts = self.texts(prompt)
        given = dict.fromkeys(self.answers(answers[0]))
        for name in answers[1:]:
            given.update(dict.fromkeys(self.answers(name) if self.has(name) else ()))
        if not given:
            self.unanswered.append(f"{self.path}{answers[0]}")
            return ()
        return tuple(Ask(text, tuple(given)) for text in prompts)

    def part(self, name: str) -> Record:
        """Go into an object.

        Args:
            name: The field.

        Returns:
            The object in it.

        Raises:
            RecordError: It is missing or no object.
        """
        return self._part(self._value(name), name)

    def parts(self, name: str) -> tuple[Record, ...]:
        """Go into the objects of a list.

        Args:
            name: The field.

        Returns:
            The objects, in order.

        Raises:
            RecordError: It is missing, no list, or holds something else than objects.
        """
        values = self._value(name)
        if not isinstance(values, list | tuple):
            raise self.error(name, f"is a {type(values).__name__} ({values!r:.60}); give a list of objects")
        return tuple(self._part(value, f"{name}[{index}]") for index, value in enumerate(values))

    def request(self, prompt: str, subject: str, target: str, id: str | None = None) -> EditRequest:
        """Read what is to be written.

        The subject is looked for as it is written, then ignoring case; then the request has it as it stands in the prompt.

        Args:
            prompt: The field with the prompt.
            subject: The field with the subject.
            target: The field with the new target: text, or an object with the text in `str`.
            id: Name of the request in reports; the case's by default.

        Returns:
            The request.

        Raises:
            RecordError: A field is missing or malformed, or the subject does not occur in the prompt.
        """
        text, name = self.text(prompt), self.text(subject).strip()
        try:
            return EditRequest(text, _as_written(name, text), self.target(target), self.case if id is None else id)
        except SubjectNotFoundError as error:
            raise self.error(subject, f"{name!r} does not occur in {prompt} {text!r:.120}") from error
        except PlaceholderError as error:
            raise self.error(
                prompt, f"{text!r:.120} holds more than one '{{}}'; write it once, for the subject"
            ) from error

    def target(self, name: str) -> str:
        """Read a target: text, or an object with the text in `str`.

        Args:
            name: The field.

        Returns:
            The text without spaces around it.

        Raises:
            RecordError: It is missing or malformed.
        """
        if isinstance(self.fields.get(name), Mapping):
            return self.part(name).text("str").strip()
        return self.text(name).strip()

    def _value(self, name: str) -> Any:
        value = self.fields.get(name)
        if value is None:
            raise self.error(
                name, f"is missing; the record has {', '.join(map(str, self.fields))[:400] or 'no fields'}"
            )
        return value

    def _part(self, value: Any, name: str) -> Record:
        if not isinstance(value, Mapping):
            raise self.error(name, f"is a {type(value).__name__} ({value!r:.60}); give an object")
        return replace(self, fields=value, path=f"{self.path}{name}.")

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise self.error(name, f"is a {type(value).__name__} ({value!r:.60}); give text")
        if not value.strip():
            raise self.error(name, "is empty; give text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(name, f"{value!r:.60} is not valid Unicode ({error.reason})") from error
        return value


def _as_written(subject: str, text: str) -> str:
    if subject in text or "{}" in text:
        return subject
    for pattern in _IGNORING_CASE:
        match = re.search(pattern.format(re.escape(subject)), text, re.IGNORECASE)
        if match is not None:
            return match.group()
    return subject


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(reversed(value))
        else:
            yield value
