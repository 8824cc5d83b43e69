"""Handing edits on: a whole model, the edits alone or a LoRA adapter, each with a model card; taking them on; the Hub."""
