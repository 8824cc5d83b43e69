"""The embedded world's edits as cases."""

from __future__ import annotations

from nas_plugin.demo.world import World
from nas_plugin.evaluation.cases import Ask, Case
from nas_plugin.request import EditRequest

FAMILY = "demo"


def read_world(world: World) -> list[Case]:
    """Turn every edit that the world allows into a case.

    Args:
        world: The world.

    Returns:
        One case for each person who may be edited: the stream of `World.edits` over all of them.
    """
    return [
        Case(
            id=str(number),
            family=FAMILY,
            requests=(EditRequest(edit.filled_prompt, edit.subject, edit.target_new, str(number)),),
            true_target=edit.ground_truth,
            rephrases=edit.paraphrases,
            neighbours=tuple(Ask(prompt, (edit.ground_truth,)) for prompt in edit.neighbours),
        )
        for number, edit in enumerate(world.edits(len(world.people) - world.n_pilots - world.n_held_out))
    ]
