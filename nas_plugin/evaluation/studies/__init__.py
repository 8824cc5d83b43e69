"""Studies of norm anchoring: single edits, biased anchors, order of the stream, number of pilots, run time; and of undo.

Each is a frozen dataclass of its numbers with `run` (one editor) and `tables` (all of them); `conduct` runs one over several
editors side by side and writes `study.json` and `study.md`.
"""
