"""R25: fifty edits change the declared weights and nothing else: not another parameter, not a buffer, not by one bit."""

from __future__ import annotations

import pytest

from tests.conftest import ARCHITECTURES, build_requests
from tests.promises.watching import digests
from tests.support import METHOD_NAMES, tiny_session


@pytest.mark.parametrize(("family", "method"), list(zip(ARCHITECTURES, METHOD_NAMES, strict=True)))
def test_every_other_tensor_keeps_its_digest_over_fifty_edits(family: str, method: str) -> None:
    session = tiny_session(family, method)
    before = digests(session.model)
    requests = build_requests(50)
    for request in requests[:10]:
        session.edit(request)
    for start in range(10, 50, 10):
        session.edit(requests[start : start + 10])
    after = digests(session.model)
    assert after.keys() == before.keys() and len(before) > 20
    assert {name for name in before if after[name] != before[name]} == set(session.parameter_names)
