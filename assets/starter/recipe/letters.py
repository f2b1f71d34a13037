"""Customer letters with what they say kept beside them: the material of the starter's corpus."""

import random
from dataclasses import dataclass

import words
from topics import TOPICS
from words import say, sentence


@dataclass(frozen=True)
class Letter:
    """One customer's letter, and the facts in it."""

    text: str
    topic: str
    product: str
    order: str | None
    urgency: str
    first: str
    last: str | None


def fill(rng: random.Random) -> dict[str, str]:
    """The small things a letter may mention."""
    return {
        "d": str(rng.randint(2, 9)),
        "dd": str(rng.randint(10, 99)),
        "house": str(rng.randint(1, 199)),
        "street": rng.choice(words.STREETS),
        "city": rng.choice(words.CITIES),
        "day": rng.choice(words.DAYS),
        "month": rng.choice(words.MONTHS),
        "colour": rng.choice(words.COLOURS),
    }


def order_number(rng: random.Random) -> str:
    """Five digits, now and then four or six, so that copying is learned and not a length."""
    length = rng.choices((4, 5, 6), (1, 8, 1))[0]
    return str(rng.randint(10 ** (length - 1), 10**length - 1))


def mention(rng: random.Random, product: str) -> str:
    """The product as a customer names it in the middle of a sentence."""
    roll = rng.random()
    if roll < 0.15:
        return f"{rng.choice(words.ADJECTIVES)} {product}"
    if roll < 0.25:
        return product.title()
    return product


def typo(rng: random.Random, text: str) -> str:
    """The text with one slip of the finger in an ordinary word; numbers and capitalised names stay whole."""
    parts = text.split(" ")
    usual = [i for i, part in enumerate(parts) if len(part) > 4 and part.isalpha() and part.islower()]
    if not usual:
        return text
    at = rng.choice(usual)
    word, i = parts[at], rng.randint(1, len(parts[at]) - 2)
    parts[at] = rng.choice((word[:i] + word[i + 1 :], word[:i] + word[i + 1] + word[i] + word[i + 2 :], word[:i] + word[i] + word[i:]))
    return " ".join(parts)


def compose(rng: random.Random, story: str, number: str | None, urgency: str, first: str, last: str | None, phrases) -> str:
    """Puts greeting, order number, story, asides, mood and name in one of the usual orders."""
    parts = []
    tail = story[-1] if story[-1] in "?!" else "."
    story = story.rstrip("?!.")
    before = after = None
    if number is not None:
        place = rng.random()
        if place < 0.3:
            before = say(rng, rng.choice(phrases.ORDER_BEFORE), n=number)
        elif place < 0.65:
            story = f"{story} {say(rng, rng.choice(phrases.ORDER_INSIDE), n=number)}"
        else:
            after = say(rng, rng.choice(phrases.ORDER_AFTER), n=number)
    if before:
        parts.append(before)
    if rng.random() < 0.2:
        parts.append(say(rng, rng.choice(phrases.ASIDES), **fill(rng)))
    parts.append(story + tail)
    if rng.random() < 0.3:
        parts.append(say(rng, rng.choice(phrases.ASIDES), **fill(rng)))
    if after:
        parts.append(after)
    mood = {"high": phrases.PRESSING, "low": phrases.RELAXED}.get(urgency)
    if mood:
        parts.insert(rng.choice((0, len(parts), len(parts))), say(rng, rng.choice(mood)))
    elif rng.random() < 0.5:
        parts.append(say(rng, rng.choice(phrases.PLAIN)))
    text = " ".join(sentence(part) for part in parts)
    if rng.random() < 0.6:
        text = f"{sentence(say(rng, rng.choice(phrases.GREETINGS)))}[,|!|.]".replace("[,|!|.]", rng.choice(",!.")) + " " + text
    if rng.random() < 0.5:
        name = first if last is None else f"{first} {last}"
        text = f"{text} {sentence(rng.choice(phrases.CLOSINGS))}, {name}"
    elif rng.random() < 0.2:
        text = text.replace(". ", "\n", 1)
    if rng.random() < 0.2:
        text = typo(rng, text)
    if rng.random() < 0.08:
        text = text.lower()
    return text


def letter(rng: random.Random) -> Letter:
    """A letter on any topic about any product."""
    topic = rng.choice(list(TOPICS))
    product = rng.choice(list(words.PRODUCTS))
    number = order_number(rng) if rng.random() < 0.9 else None
    urgency = rng.choice(("high", "low", "usual"))
    first = rng.choice(words.FIRST)
    last = rng.choice(words.LAST) if rng.random() < 0.6 else None
    story = say(rng, rng.choice(TOPICS[topic][1]), p=mention(rng, product), **fill(rng))
    text = compose(rng, story, number, urgency, first, last, words)
    return Letter(text, topic, product, number, urgency, first, last)
