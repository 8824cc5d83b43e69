"""Ten facts through EasyEdit's `BaseEditor`."""

from easyeditor import BaseEditor

from nas_plugin import NASAlphaEditHparams
from nas_plugin.demo.world import World

# A file for a real model: NASAlphaEditHparams.from_hparams("NAS-AlphaEdit/llama3-8b")
editor = BaseEditor.from_hparams(NASAlphaEditHparams())
edits = World().edits(10)
metrics, model, _ = editor.edit(
    prompts=[edit.filled_prompt for edit in edits],
    subject=[edit.subject for edit in edits],
    target_new=[edit.target_new for edit in edits],
    ground_truth=[edit.ground_truth for edit in edits],
    sequential_edit=True,  # or EasyEdit puts the weights back after each edit
)
right = sum(entry["post"]["rewrite_acc"][0] == 1 for entry in metrics)
print(f"{right} of {len(edits)} edits succeed right after they are written")
