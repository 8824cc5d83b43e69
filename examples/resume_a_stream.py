"""A stream that is kept on disk, killed, and gone on with in a new process: the same weights, bit for bit."""

import multiprocessing
import os
import tempfile

from nas_plugin import EditSession, NASAlphaEditHparams
from nas_plugin.demo import load_demo
from nas_plugin.demo.world import World

STREAM = [edit.to_request() for edit in World().edits(12)]


def write(folder: str | None, killed_after: int | None = None) -> str:
    """Write the stream, as far as it is not written already; return a digest of the edited weights."""
    model, tok = load_demo()
    session = EditSession(model, tok, NASAlphaEditHparams(snapshot_every=5), keep=folder, progress=False)
    if folder is not None:
        print("in the ledger:", session.resume(STREAM), "edits")
    for number, request in enumerate(STREAM):
        if number == killed_after:
            os._exit(1)  # no goodbye: as a power cut would
        session.edit(request)  # what the ledger has already is known, and nothing is done
    return session.weights_digest()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        victim = multiprocessing.get_context("spawn").Process(target=write, args=(folder, 8))
        victim.start()
        victim.join()
        resumed = write(folder)
    print("as if it had not been killed:", resumed == write(None))
