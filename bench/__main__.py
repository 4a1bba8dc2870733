"""``python -m bench``: measure kmsjwks and its peers, and print the table of ratios."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from datetime import UTC, datetime
from types import FrameType

from bench import install, picture, report
from bench.costs import COST_SCENES
from bench.model import Options
from bench.places import OUT
from bench.runner import run
from bench.scenes import SOFTHSM_SCENES
from bench.special import SPECIAL_SCENES

_SCENES = {scene.name: scene for scene in (*SOFTHSM_SCENES, *SPECIAL_SCENES, *COST_SCENES)}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "scenes", nargs="*", metavar="SCENE", help=f"all, or some of: {' '.join(_SCENES)}"
    )
    parser.add_argument("--seconds", type=int, default=10, help="of one measurement (10)")
    parser.add_argument("--rounds", type=int, default=5, help="of each scene (5)")
    parser.add_argument("--keysets", type=int, default=1000, help="of the large one (1000)")
    parser.add_argument("--soak", type=int, default=0, help="seconds of soak (0: none; 600)")
    asked = parser.parse_args()
    unknown = set(asked.scenes) - _SCENES.keys()
    if unknown:
        parser.error(f"no scene {', '.join(sorted(unknown))}")
    if min(asked.seconds, asked.rounds, asked.keysets) < 1:
        parser.error("seconds, rounds and keysets start at 1")
    return asked


def main() -> int:
    """0 when every measured row holds its bound, 5 when one does not."""
    signal.signal(signal.SIGTERM, _end)
    asked = _asked()
    options = Options(asked.seconds, asked.rounds, asked.keysets, asked.soak)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    for problem in install.install():
        say(f"not installed: {problem}")
    taken = [run(_SCENES[name], options, say) for name in asked.scenes or _SCENES]
    cells = report.cells(taken)
    OUT.mkdir(exist_ok=True)
    text = json.dumps(report.document(taken, options, began), indent=1)
    (OUT / "bench.json").write_text(text + "\n")
    (OUT / "bench.svg").write_text(picture.draw(cells, f"kmsjwks, {began}"))
    print(report.table(cells))
    print(f"Written: {OUT.name}/bench.json and bench.svg in {OUT.parent.name}/")
    return 5 if any(cell.verdict == "FAIL" for cell in cells) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
