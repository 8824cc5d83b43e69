"""Requests: accepted in both schemas, refused by name."""

from __future__ import annotations

import pytest

from nas_plugin.errors import (
    EmptyPromptError,
    EmptySubjectError,
    EmptyTargetError,
    PlaceholderError,
    RequestError,
    SubjectNotFoundError,
)
from nas_plugin.request import EditRequest, as_requests


def test_flat_and_nested_records_give_the_same_request() -> None:
    flat = EditRequest.from_mapping(
        {"prompt": "The tongue of Ann is", "subject": "Ann", "target_new": " French", "case_id": 7}
    )
    nested = EditRequest.from_mapping(
        {
            "case_id": 7,
            "requested_rewrite": {"prompt": "The tongue of {} is", "subject": "Ann", "target_new": {"str": "French"}},
        }
    )
    assert flat == nested == EditRequest("The tongue of Ann is", "Ann", "French", "7", 14)
    assert flat.prompt[flat.start : flat.end] == "Ann"


def test_a_whole_word_is_preferred_and_braces_are_text() -> None:
    assert EditRequest("Annual report of Ann is", "Ann", "x").start == 17
    assert EditRequest("Use {x} in C++ of Ann {", "C++", "x").start == 11
    assert EditRequest("Annual", "Ann", "x").start == 0


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "error", "says"),
    [
        ("Nobody lives here", "Ann", "x", SubjectNotFoundError, "exactly as in"),
        ("ann is", "Ann", "x", SubjectNotFoundError, "case matters"),
        ("Ann is", "Ann", "  ", EmptyTargetError, "target is empty"),
        ("Ann is", "", "x", EmptySubjectError, "subject is empty"),
        (" ", "Ann", "x", EmptyPromptError, "prompt is empty"),
        ("{} and {} are", "Ann", "x", PlaceholderError, "once"),
        ("Ann is", "Ann", ["x"], RequestError, "list"),
    ],
)
def test_bad_requests_are_named(prompt: str, subject: str, target: object, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        EditRequest(prompt, subject, target)  # type: ignore[arg-type]


def test_missing_keys_and_no_requests_are_named() -> None:
    with pytest.raises(RequestError, match="no subject, target_new"):
        as_requests([{"prompt": "Ann is"}])
    with pytest.raises(RequestError, match="at least one"):
        as_requests([])
