"""`python -m nas_plugin.cli`."""

from nas_plugin.cli.app import app

app()
