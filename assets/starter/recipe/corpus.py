#!/usr/bin/env python3
"""Writes the text that the starter model learns from: conversations at the desk of a made-up shop.

    python3 corpus.py --lesson copying --records 30000 --seed 19 --out copying.jsonl
    python3 corpus.py --lesson desk --records 16000 --seed 20 --out desk.jsonl
    python3 corpus.py --lesson hurry --records 6000 --seed 22 --out hurry.jsonl
    python3 corpus.py --lesson pieces --records 6000 --seed 23 --out pieces.jsonl
    python3 corpus.py --lesson review --records 4500 --seed 24 --out review.jsonl

Each line is one conversation (`bedrock-conversation-2024`). The same seed gives the same file.
The customer's letters are composed from `words.py` and `topics.py`; the assistant sums them up, answers
questions about them, writes letters and replies of its own, repeats and sorts small things and knows
what the shop's products are for. There is no JSON and no label in what the assistant says.
"""

import argparse
import json
import random
import re

import words
from letters import Letter, fill, letter, order_number
from topics import TOPICS
from words import say, sentence

URGENCY = {"high": "It is pressing.", "low": "It can wait.", "usual": "The time is not important."}
URGENCY_NOTE = {"high": "pressing", "low": "can wait", "usual": "as usual"}


# Words of every sort, for rows that make no sense.
POOL = [
    *words.FIRST, *words.LAST, *words.CITIES, *words.COLOURS, *words.DAYS, *words.MONTHS, *words.STREETS,
    *words.PRODUCTS, *(f'"{product}"' for product in words.PRODUCTS),
]

SIGNS = list("!#$%&'()*+,-./:;<=>?@[]^_{}|~") + ['"']
# Every word of the letters, to be cut at any place.
CUT = sorted({word for wish, lines in TOPICS.values() for text in (wish, *lines) for word in re.findall("[a-z]+", text)} | set("abcdefghijklmnopqrstuvwxyz"))


def ask_order(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: the number of the order."""
    answer = "No order number is given." if of.order is None else f"The order number is {of.order}."
    return say(rng, "[what is|tell me|give me] the order number[?|.]"), answer


def ask_product(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: the thing the letter is about."""
    return say(rng, "[which product is this about|what is it about|which item is meant]?"), f"It is about the {of.product}."


def ask_wish(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: what the customer wants."""
    return say(rng, "what does the customer [want|ask for|need]?"), f"The customer wants {TOPICS[of.topic][0]}."


def ask_urgency(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: how pressing it is."""
    return say(rng, "how [urgent|pressing] is it?"), URGENCY[of.urgency]


def ask_note(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: the agent's note, all facts in one place."""
    order = of.order or "none"
    note = f"Wish: {TOPICS[of.topic][0]}. Product: {of.product}. Order: {order}. Time: {URGENCY_NOTE[of.urgency]}."
    return say(rng, "[write a note|take notes|note the facts]."), note


def ask_summary(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: one plain sentence."""
    order = "" if of.order is None else f" from order {of.order}"
    return say(rng, "[sum this up|what is this letter about|say it in one sentence][.|?]"), (
        f"A customer with the {of.product}{order} wants {TOPICS[of.topic][0]}."
    )


def ask_reply(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: a polite reply to the customer."""
    order = "" if of.order is None else f" and order {of.order}"
    when = {"high": "We will act at once.", "low": "We will write to you soon.", "usual": "We will write to you today."}
    return say(rng, "[answer|reply to] the customer."), (
        f"Thank you for your message about the {of.product}{order}. You want {TOPICS[of.topic][0].replace('their', 'your')}. {when[of.urgency]}"
    )


def ask_quote(rng: random.Random, of: Letter) -> tuple[str, str]:
    """Question and answer: product and order in quotation marks."""
    order = "and no order" if of.order is None else f'and "{of.order}"'
    return say(rng, "quote the product and the order."), f'The letter names "{of.product}" {order}.'


QUESTIONS = [ask_order, ask_quote, ask_product, ask_wish, ask_urgency, ask_note, ask_note, ask_note, ask_summary, ask_reply]


def desk(rng: random.Random) -> list[str]:
    """A letter, then the agent's questions about it."""
    of = letter(rng)
    asked = rng.sample(QUESTIONS, k=rng.choice((2, 3, 4)))
    asked = list(dict.fromkeys(asked))
    turns = []
    for i, question in enumerate(asked):
        user, assistant = question(rng, of)
        turns += [f"{of.text}\n{sentence(user)}" if i == 0 else sentence(user), assistant]
    return turns


def bare(rng: random.Random) -> list[str]:
    """A letter with no question is answered with a note."""
    of = letter(rng)
    return [of.text, ask_note(rng, of)[1]]


def hurry(rng: random.Random) -> list[str]:
    """How pressing a letter is, asked of a few sentences or of a whole letter."""
    of = letter(rng)
    text = of.text
    if rng.random() < 0.4:
        said = {"high": words.PRESSING, "low": words.RELAXED, "usual": words.PLAIN}[of.urgency]
        about = [say(rng, rng.choice(words.ASIDES), **fill(rng)) for _ in range(rng.randint(0, 2))]
        parts = [*about, say(rng, rng.choice(said))]
        rng.shuffle(parts)
        text = " ".join(sentence(part) for part in parts)
    return [f"{text}\nHow {rng.choice(('urgent', 'pressing'))} is it?", URGENCY[of.urgency]]


def write(rng: random.Random) -> list[str]:
    """The other way round: facts are given, the assistant writes the letter."""
    of = letter(rng)
    order = "" if of.order is None else f", order {of.order}"
    mood = {"high": "in a hurry", "low": "relaxed", "usual": "plain"}[of.urgency]
    name = of.first if of.last is None else f"{of.first} {of.last}"
    return [f"Write a letter, {mood}: {name} wants {TOPICS[of.topic][0]}, {of.product}{order}.", of.text]


def repeat(rng: random.Random) -> list[str]:
    """Copying: a row of words and numbers that no grammar foretells, once more in the same order."""
    row = [order_number(rng) if rng.random() < 0.3 else rng.choice(POOL) for _ in range(rng.randint(2, 5))]
    return [f"Repeat: {' '.join(row)}", " ".join(row)]


def pieces(rng: random.Random) -> list[str]:
    """Copying what is no word: cut words, signs, and both together, so that every token has been said."""
    row = []
    for _ in range(rng.randint(2, 6)):
        word = rng.choice(CUT)
        start = rng.randrange(len(word))
        piece = word[start : start + rng.randint(1, 9)]
        roll = rng.random()
        row.append(piece if roll < 0.4 else rng.choice(SIGNS) + piece if roll < 0.6 else piece + rng.choice(SIGNS) if roll < 0.8 else rng.choice(SIGNS))
    joint = rng.choice((" ", " ", ""))
    return [f"Repeat: {joint.join(row)}", joint.join(row)]


def lookup(rng: random.Random) -> list[str]:
    """Finding one of several: orders, their things and their owners."""
    count = rng.randint(2, 4)
    numbers = [order_number(rng) for _ in range(count)]
    things = rng.sample(list(words.PRODUCTS), k=count)
    people = rng.sample(words.FIRST, k=count)
    at = rng.randrange(count)
    kind = rng.randrange(3)
    if kind == 0:
        listed = " ".join(f"Order {n} holds the {p}." for n, p in zip(numbers, things))
        asked = [(f"What is in order {numbers[at]}?", f"Order {numbers[at]} holds the {things[at]}.")]
        asked.append((f"Which order holds the {things[-1]}?", f"Order {numbers[-1]}."))
    elif kind == 1:
        listed = " ".join(f"{who} has order {n}." for who, n in zip(people, numbers))
        asked = [(f"Which order has {people[at]}?", f"{people[at]} has order {numbers[at]}.")]
        asked.append((f"Who has order {numbers[0]}?", f"{people[0]} has order {numbers[0]}."))
    else:
        listed = " ".join(f"{who} bought the {p}." for who, p in zip(people, things))
        asked = [(f"What did {people[at]} buy?", f"{people[at]} bought the {things[at]}.")]
        asked.append((f"Who bought the {things[-1]}?", f"{people[-1]} bought the {things[-1]}."))
    (first, answer), (second, other) = asked
    return [f"{listed} {first}", answer, second, other]


def facts(rng: random.Random) -> list[str]:
    """What the shop's products are, and short lists."""
    product = rng.choice(list(words.PRODUCTS))
    place, use, stuff = words.PRODUCTS[product]
    kind = rng.randrange(4)
    if kind == 0:
        return [f"What is the {product} for?", f"The {product} is for {use}."]
    if kind == 1:
        return [f"What is the {product} made of?", f"The {product} is made of {stuff}."]
    if kind == 2:
        return [f"Tell me about the {product}.", f"The {product} is made of {stuff}. It is for {place} and helps with {use}."]
    others = rng.sample([name for name, (where, _, _) in words.PRODUCTS.items() if where != place], k=2)
    listed = rng.sample([product, *others], k=3)
    return [f"Which of these is for {place}: {', '.join(listed)}?", f"The {product}."]


def story(rng: random.Random) -> list[str]:
    """A few sentences about a day at the shop."""
    who, other = rng.sample(words.FIRST, k=2)
    product, more = rng.sample(list(words.PRODUCTS), k=2)
    f = fill(rng)
    lines = [
        f"On {f['day']} {who} came to the desk and read the letters.",
        say(rng, "the first one was from {o}, who had bought a {p} in {city}.", o=other, p=product, **f),
        say(rng, "{w} [looked up|found] the order and [wrote|typed] the number {n}.", w=who, n=order_number(rng)),
        say(rng, "{o} [was glad|said thank you|was happy with the answer].", o=other),
        say(rng, "then {w} [packed|wrapped|sent] a {p} for the next customer.", w=who, p=more),
        say(rng, "in the evening the [desk|table|shelf] was [empty|clean] and the [shop|store] closed at {d}.", **f),
    ]
    return [f"Tell a story with {who}, {other} and a {product}.", " ".join(sentence(line) for line in lines)]


SYSTEMS = ["You work at the desk of a shop.", "Answer briefly.", "You are a helpful assistant.", "Read the letter with care.", "Be polite and short."]

# Copying comes first: a model that has learned to find and repeat a word learns everything else on the desk faster.
LESSONS = {
    "copying": [(repeat, 9), (lookup, 1)],
    "hurry": [(hurry, 6), (desk, 2), (bare, 2), (repeat, 1)],
    "pieces": [(pieces, 10), (hurry, 3), (bare, 4), (desk, 2), (facts, 1)],
    "review": [(hurry, 8), (bare, 5), (pieces, 4), (desk, 4), (facts, 1), (write, 1)],
    "desk": [(desk, 50), (bare, 12), (write, 3), (repeat, 12), (lookup, 10), (facts, 8), (story, 2)],
}


def record(rng: random.Random, lesson: str) -> dict:
    """One conversation in the form that Bedrock's fine-tuning reads."""
    kinds, weights = zip(*LESSONS[lesson])
    turns = rng.choices(kinds, weights)[0](rng)
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"text": text}]} for i, text in enumerate(turns)
    ]
    head = {"schemaVersion": "bedrock-conversation-2024"}
    if lesson != "copying" and rng.random() < 0.3:
        head["system"] = [{"text": rng.choice(SYSTEMS)}]
    return head | {"messages": messages}


def main() -> None:
    """Writes the asked-for number of records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lesson", choices=LESSONS, default="desk")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with open(args.out, "w", encoding="utf-8", newline="\n") as out:
        for _ in range(args.records):
            out.write(json.dumps(record(rng, args.lesson), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
