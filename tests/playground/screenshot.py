"""Take the README's picture of the playground: `make screenshot`."""

import sys
from pathlib import Path

from em_inf.server.playground import FOLDER
from tests.e2e.serving import Server
from tests.playground.browser import DESKTOP, open_page, run, start_browser

PICTURE = FOLDER / "screenshot.png"


def take(url: str, path: Path) -> None:
    """Run the page's first prompt, point at an undecided token, and take the picture."""
    tall = {**DESKTOP, "height": 1300}
    with start_browser() as browser, open_page(browser, viewport=tall) as page:
        page.goto(f"{url}/playground")
        run(page)
        page.locator("#b .token.shade-3").first.hover()
        page.screenshot(path=path, full_page=True)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with Server.start() as server:
        take(server.url, target)
    print(f"{target}: {target.stat().st_size} bytes")
