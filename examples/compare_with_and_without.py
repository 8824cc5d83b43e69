"""The same stream through the plain editor and with NAS: score over all edits so far, and how much W has grown."""

import logging

import torch

from nas_plugin import EditSession, NASMEMITHparams
from nas_plugin.demo import load_demo
from nas_plugin.demo.score import score
from nas_plugin.demo.world import World

logging.getLogger("nas_plugin").setLevel(logging.ERROR)  # norms are what is looked at here: no word at each alarm
EDITS, EVERY = 80, 40
world = World()
stream = world.edits(EDITS)
for use_nas in (False, True):
    model, tok = load_demo(torch.float64)
    session = EditSession(model, tok, NASMEMITHparams(use_nas=use_nas), progress=False)
    for number, edit in enumerate(stream, start=1):
        report = session.edit(edit.to_request())
        if number % EVERY == 0:
            now = score(model, tok, stream[:number], world.held_out_facts)
            name = "NAS-MEMIT" if use_nas else "MEMIT"
            print(f"{name:10} {number:4} edits  score {now.score:5.1f}  |W|/|W0| {report.norm_ratio:5.1f}")
