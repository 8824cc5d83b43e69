"""The edits alone in a file, and back into the unedited model."""

import tempfile
from pathlib import Path

import torch

from nas_plugin import EditSession, NASMEMITHparams, load_edits
from nas_plugin.demo import load_demo
from nas_plugin.demo.world import World

edited, tok = load_demo()
session = EditSession(edited, tok, NASMEMITHparams(), progress=False)
session.edit([edit.to_request() for edit in World().edits(10)])  # one step of ten facts

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "edits.safetensors"
    session.save_edits(file)
    base, _ = load_demo()  # in another process, on another machine: the same unedited model
    about = load_edits(base, file)
    print(f"{about.edits} edits by {about.method} in {file.stat().st_size:,} bytes: {', '.join(about.parameters)}")

prompt = tok(World().edits(1)[0].filled_prompt, return_tensors="pt")
with torch.no_grad():
    print("same logits:", torch.equal(base(**prompt).logits, edited(**prompt).logits))
