"""The `nas-edit` command."""

from nas_plugin.cli.app import app

__all__ = ["app"]
