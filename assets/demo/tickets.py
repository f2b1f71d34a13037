#!/usr/bin/env python3
"""Writes the demo's data: support tickets and the JSON that routes them.

    python3 tickets.py --seed 7 --out .

    train.jsonl       640 tickets    validation.jsonl   60 tickets    held_out.jsonl   120 tickets

Each line is one conversation (`bedrock-conversation-2024`): the customer's ticket, then one line of JSON with
intent, product, order and urgency. No ticket of one file is in another; half of the held-out tickets are made
of wordings (`phrases.UNSEEN`) that training never saw. The same seed gives the same files.
"""

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "starter" / "recipe"))

import phrases
import words
from letters import compose, fill, mention
from words import say

SYSTEM = "Route the ticket: answer with JSON."


def ticket(rng: random.Random, intent: str, product: str, wordings: list[str]) -> tuple[str, dict]:
    """A ticket and what the desk should read from it."""
    number = str(rng.randint(10000, 99999)) if rng.random() < 0.92 else None
    urgency = rng.choice(("high", "normal", "low"))
    story = say(rng, rng.choice(wordings), p=mention(rng, product), **fill(rng))
    first = rng.choice(words.FIRST)
    last = rng.choice(words.LAST) if rng.random() < 0.5 else None
    text = compose(rng, story, number, urgency, first, last, phrases)
    return text, {"intent": intent, "product": product, "order": number, "urgency": urgency}


def record(text: str, answer: dict) -> str:
    """One line of the data set."""
    return json.dumps(
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": SYSTEM}],
            "messages": [
                {"role": "user", "content": [{"text": text}]},
                {"role": "assistant", "content": [{"text": json.dumps(answer, separators=(",", ":"))}]},
            ],
        }
    )


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7, help="of the training and validation tickets")
    parser.add_argument("--held-out-seed", type=int, default=1, help="of the held-out tickets")
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    seen: set[str] = set()
    for name, count, unseen in (("train", 640, 0.0), ("validation", 60, 0.0), ("held_out", 120, 0.5)):
        lines = []
        if name == "held_out":
            rng = random.Random(args.held_out_seed)
        while len(lines) < count:
            # Every intent and every product comes equally often.
            intent = list(phrases.WORDINGS)[len(lines) % len(phrases.WORDINGS)]
            product = phrases.PRODUCTS[(len(lines) * 3 + len(lines) // len(phrases.WORDINGS)) % len(phrases.PRODUCTS)]
            table = phrases.UNSEEN if rng.random() < unseen else phrases.WORDINGS
            text, answer = ticket(rng, intent, product, table[intent])
            if text not in seen:
                seen.add(text)
                lines.append(record(text, answer))
        rng.shuffle(lines)
        (args.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
