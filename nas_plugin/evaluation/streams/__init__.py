"""Streams of edits: the benchmarks' records, in each of their schemas, as cases."""

from nas_plugin.evaluation.streams.load import Stream, load_stream

__all__ = ["Stream", "load_stream"]
