"""One process of a launch: measures and edits as all do, and says what it came to.

`python -m tests.parallel_worker FOLDER FAMILY`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from nas_plugin.ahead import statistics_ahead
from nas_plugin.errors import ProcessGroupError
from nas_plugin.evaluation.capability import PAPER, STANDARD, capabilities
from nas_plugin.evaluation.measures import DriftProbe, base_outputs, measure, perplexity
from nas_plugin.request import as_requests
from nas_plugin.session import EditSession
from tests.conftest import build_model, build_requests, build_tokenizer
from tests.evaluation.capability_support import write_data
from tests.support import TEXT, tiny_hparams
from tests.test_devices import cases


def session_in(folder: Path, family: str) -> EditSession:
    text = folder / "text.json"
    if not text.exists():
        text.write_text(json.dumps(TEXT * 20))
    hparams = tiny_hparams(
        "AlphaEdit",
        mom2_dataset=str(text),
        nas_n_pilots=5,
        stats_dir=str(folder / "stats"),
        keep_dir=str(folder / "kept"),
    )
    return EditSession(build_model(family, torch.float64), build_tokenizer(), hparams, progress=False)


def come_to(session: EditSession, data: Path) -> dict[str, Any]:
    """What a session measures, writes and is measured to have written; `data` has the files of capability tasks."""
    model, tok, group, asked = session.model, session.tok, session.group, cases()
    before = base_outputs(model, tok, asked, group=group)
    ahead = statistics_ahead(session, spectrum=False)
    laid = session.prepare()
    session.edit(build_requests(2))
    probe = DriftProbe(model, tok, session.hparams, as_requests(build_requests(5)), group=group)
    session.edit(build_requests(5)[2:])
    return {
        "size": group.size,
        "kept": session.keeper is not None,
        "measured": ahead.measured,
        "priors": [path.exists() for path in ahead.priors.values()],
        "contexts": laid.contexts.flat,
        "tokens": laid.moments.tokens,
        "text": laid.moments.provenance["text"],
        "moments": {str(layer): matrix.tolist() for layer, matrix in laid.moments.matrices.items()},
        "anchor": session.anchor_value,
        "edited": [matrix.tolist() for matrix in session.weights.master.values()],
        "digest": session.weights_digest(),
        "base": before,
        "metrics": measure(model, tok, asked, base=before, group=group),
        "perplexity": perplexity(model, tok, TEXT[:7], window=32, group=group),
        "drift": [[of["pca_distance"], of["full_distance"], of["spread"]] for of in probe.measure(model).values()],
        "capability": [
            capabilities(
                model, tok, ["local_sst2", "local_rte"], data_dir=data, limit=limit, protocol=protocol, group=group
            )
            for protocol, limit in ((STANDARD, None), (STANDARD, 1), (PAPER, None), (PAPER, 1))
        ],
    }


def refusals(session: EditSession) -> dict[str, Any]:
    """What processes that are not alike are told; the model stays as it was."""
    group, said = session.group, {}
    before = session.weights_digest()
    for name, act in {
        "requests": lambda: session.edit(build_requests(1 + group.rank)),
        "weights": lambda: session.edit({**build_requests(6)[5], "case_id": "w"}),
        "resume": session.resume,
        "undo": lambda: session.undo("0"),
    }.items():
        if name == "weights" and group.rank:
            session.weights.master[0] = session.weights.master[0] + 1e-9
        try:
            act()
        except ProcessGroupError as error:
            said[name] = error.message
    said["unchanged"] = session.weights_digest() == before
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    session = session_in(folder, sys.argv[2])
    found = come_to(session, write_data(folder / f"data{session.group.rank}", times=8))
    again = session_in(folder, sys.argv[2])
    found["again"] = {"anchor": again.prepare().anchor.value, "same": again.prepare().moments.matrices[0].tolist()}
    found["refusals"] = refusals(session)
    (folder / f"rank{session.group.rank}.json").write_text(json.dumps(found))
