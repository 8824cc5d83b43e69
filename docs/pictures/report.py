"""Draw the report of a comparison as a browser shows it: `python docs/pictures/report.py`, some minutes; needs chromium."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1120, 1105


def photograph(report: Path, picture: Path) -> None:
    """Write what a browser shows of the head of a report.

    Args:
        report: The page.
        picture: PNG file to write.
    """
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(report.absolute().as_uri())
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Compare MEMIT with and without NAS on the embedded model and photograph the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--edits", type=int, default=240)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare = ["compare", "MEMIT", "NAS-MEMIT", "--stream", "demo", "--edits", str(chosen.edits), "--out", "runs"]
        subprocess.run([sys.executable, "-m", "nas_plugin.cli", *compare], cwd=folder, check=True)
        photograph(Path(folder) / "runs" / "report.html", chosen.out / "report.png")


if __name__ == "__main__":
    main()
