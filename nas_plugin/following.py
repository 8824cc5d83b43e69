"""When somebody else changes the edited weights, the session's state follows."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nas_plugin.interrupts import uninterrupted
from nas_plugin.keep.ledger import FOREIGN as FOREIGN_EVENT
from nas_plugin.weights import FOREIGN, RESET, ROLLED_BACK

if TYPE_CHECKING:
    from nas_plugin.session import EditSession

logger = logging.getLogger(__name__)


def follow(session: EditSession) -> None:
    """Bring a session's state to where its weights are, before a step.

    Args:
        session: The session, prepared.
    """
    state, method = session.weights.state(), session.hparams.alg_name
    if state == ROLLED_BACK:
        logger.info("the last step was rolled back by the caller; the state of %s follows", method)
        session.rollback()
    elif state == RESET:
        logger.info("the model was restored by the caller; %s starts afresh", method)
        session.revert()
    elif state == FOREIGN:
        logger.warning(
            "the edited weights were changed by something else than this session: %s forgets its %d steps and goes on from the "
            "weights as they are; statistics and anchor stay those of the unedited model",
            method,
            session.steps,
        )
        with uninterrupted():
            session.restart(session.weights.current())
            if session.keeper is not None:
                # First the snapshot: the weights are nowhere else, and the ledger may only say what can be done again.
                session.keeper.snapshot(session, ahead=1)
                session.keeper.ledger.put([{"event": FOREIGN_EVENT, "weights": session.weights_digest()}])
