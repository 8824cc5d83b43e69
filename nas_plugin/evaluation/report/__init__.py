"""One self-contained HTML page from run folders: tables and charts, nothing to load, light and dark."""

from nas_plugin.evaluation.report.page import write_report

__all__ = ["write_report"]
