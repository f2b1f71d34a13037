"""Loads the artifacts that we trained with the library that defines each method, and compares what both compute.

    python tests/golden/check.py FOLDER

FOLDER is what methods.py --folder made, with FOLDER/ours/CASE written by the golden tests: the artifact of the trained
state (artifact/), our logits of the case's records (ours.safetensors) and our greedy answer (ours.json). Every logit
may differ by 1e-5 of the largest, or of 1; answers must be equal. The versions are those of methods.py.
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file

from methods import greedy, load, logits_of

TOLERANCE = 1e-5


def compare(folder, case):
    """The worst difference of a logit, and whether the greedy answers are equal."""
    expected = json.loads((folder / "methods" / case / "expected.json").read_text())
    ours = folder / "ours" / case
    model = load(case, folder / "models" / expected["base"], ours / "artifact")
    theirs = logits_of(model, expected["records"])
    logits = load_file(ours / "ours.safetensors")["logits"]
    if logits.shape != theirs.shape:
        raise ValueError(f"logits of shape {tuple(logits.shape)}, not {tuple(theirs.shape)}")
    worst = (logits - theirs).abs().max() / max(1, theirs.abs().max())
    answer = json.loads((ours / "ours.json").read_text())["greedy"]
    return worst.item(), answer == greedy(model, expected["records"][0])


def main(folder):
    passed = True
    print(f"{'case':<20} {'worst logit difference':>22}  greedy equal")
    for case in sorted(path.name for path in (folder / "methods").iterdir()):
        try:
            worst, same = compare(folder, case)
        except Exception as error:  # one case that does not load must not hide the others
            print(f"{case:<20} does not load: {error}")
            passed = False
            continue
        # A comparison that a NaN fails too.
        good = worst <= TOLERANCE and same
        passed &= good
        print(f"{case:<20} {worst:>22.1e}  {'yes' if same else 'NO'}{'' if good else '   FAILED'}")
    return passed


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
