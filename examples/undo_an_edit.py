"""One edit of several taken out, the others left."""

import tempfile

from nas_plugin import EditSession, NASAlphaEditHparams
from nas_plugin.demo import load_demo
from nas_plugin.demo.score import next_word_logits
from nas_plugin.demo.world import World

edits = World().edits(3)
model, tok = load_demo()


def answers() -> list[str]:
    """What the model says to the three prompts."""
    best = next_word_logits(model, tok, [edit.filled_prompt for edit in edits]).argmax(1)
    return tok.convert_ids_to_tokens(best.tolist())


before = answers()
with tempfile.TemporaryDirectory() as folder:
    with EditSession(model, tok, NASAlphaEditHparams(), keep=folder, progress=False) as session:
        reports = [session.edit(edit.to_request()) for edit in edits]
        print("before any edit: ", before)
        print("after three:     ", answers())
        session.undo(reports[1].edits[0].id)
        print("second undone:   ", answers())
