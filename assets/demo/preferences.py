#!/usr/bin/env python3
"""Writes a preference task: customers' messages, each with a fitting and an unfitting answer.

    python3 preferences.py --seed 3 --out preferences

    train.jsonl   320 pairs    held_out.jsonl   100 pairs

A complaint wants an apology and a question wants a reply; both answers are drawn from the same phrases, so an answer
alone does not tell whether it was chosen: a model that has not learned the task is right in half of the pairs. The
products of the held-out pairs stand in no training pair. The same seed gives the same files.
"""

import argparse
import json
import random
from pathlib import Path

PRODUCTS = ["coffee grinder", "phone case", "desk lamp", "kettle", "backpack", "headphones", "toaster", "tent"]
UNSEEN = ["keyboard", "blender", "umbrella", "speaker"]

COMPLAINTS = [
    "My {p} arrived broken.",
    "The {p} that I bought stopped working after {n} days.",
    "I have waited {n} days for my {p} and it is still not here.",
    "There is a scratch on my new {p}.",
    "You sent me the wrong {p}. My order number is {o}.",
    "The {p} from order {o} has a missing part.",
]
QUESTIONS = [
    "Do you have the {p} in another color?",
    "How long does it take to send a {p}?",
    "Can you tell me the weight of the {p}?",
    "Is the {p} from order {o} already on its way?",
    "I want to buy {n} of the {p}. What is the price?",
    "How do I clean the {p}?",
]
GREETINGS = ["Hello! ", "Good morning. ", "Hi, ", ""]
APOLOGIES = [
    "We are sorry about the {p}. You will get a new one.",
    "Please accept our apology. We will send you another {p}.",
    "Sorry for the trouble with your {p}. We will make it right.",
]
REPLIES = [
    "Thank you for your question about the {p}. We will look it up.",
    "Good to hear that you like the {p}. Here are the details.",
    "Thank you for your interest in the {p}. We will tell you soon.",
]


def pair(rng: random.Random, products: list[str]) -> dict:
    """A message with the fitting answer first."""
    product = rng.choice(products)
    complains = rng.random() < 0.5
    fill = {"p": product, "n": rng.randint(2, 19), "o": rng.randint(10000, 99999)}
    message = rng.choice(GREETINGS) + rng.choice(COMPLAINTS if complains else QUESTIONS).format(**fill)
    answers = [rng.choice(phrases).format(**fill) for phrases in (APOLOGIES, REPLIES)]
    chosen, rejected = answers if complains else reversed(answers)
    return {"prompt": message, "chosen": chosen, "rejected": rejected}


def main() -> None:
    """Writes the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("preferences"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, seed, count, products in (("train", args.seed, 320, PRODUCTS), ("held_out", -args.seed, 100, UNSEEN)):
        rng = random.Random(f"{seed} {name}")
        lines = [json.dumps(pair(rng, products)) + "\n" for _ in range(count)]
        (args.out / f"{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
