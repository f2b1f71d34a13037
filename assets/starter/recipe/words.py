"""The words of a small mail-order shop: people, things, wishes and moods.

A phrase may offer choices: "[I want|please give me] {want}" becomes one of its readings each time
it is said. Names in braces are filled by the caller. Nothing here knows about files or records.
"""

import random
import re

CHOICE = re.compile(r"\[([^\[\]]*)\]")


def say(rng: random.Random, phrase: str, **slots: str) -> str:
    """One reading of `phrase`: choices are drawn from the inside out, then slots are filled."""
    while (found := CHOICE.search(phrase)) is not None:
        phrase = phrase[: found.start()] + rng.choice(found[1].split("|")) + phrase[found.end() :]
    return " ".join(phrase.format(**slots).split())


def sentence(text: str) -> str:
    """The text with a capital at its head."""
    return text[:1].upper() + text[1:]


FIRST = """Ada Ahmed Aisha Alan Alice Amara Andre Anna Anton Aria Ben Bianca Boris Carla Carlos Cathy Chen Clara
Daniel Daria David Deepa Diego Elena Elif Emil Emma Erik Eva Farid Felix Fiona Frida George Grace Hana Hans Hugo Ida
Ines Irene Ivan Jack Jamal James Jana Jin Joan Jonas Julia Kai Karim Kate Kofi Lara Laura Lena Leo Lily Linda Luca
Lucy Maja Marco Maria Mark Marta Mei Mia Milan Mona Nadia Nina Noah Nora Olga Omar Oscar Paul Pedro Petra Priya Rania
Ravi Rita Robin Rosa Ruth Sam Sara Selma Simon Sofia Stefan Tara Theo Tina Tom Uma Vera Victor Wanda Will Yara Yusuf
Zoe""".split()

LAST = """Adams Allen Baker Bauer Bell Berg Brown Carter Castro Clark Cohen Costa Cruz Diaz Evans Fischer Flores Ford
Garcia Gomez Gray Green Hall Haas Hill Huber Jansen Jones Kaya Keller Khan Kim King Klein Kumar Lang Lee Lewis Lopez
Marino Martin Meyer Mills Moore Moreau Morris Nair Novak Okoye Olsen Ortiz Park Patel Perez Price Reed Rivera Rossi
Santos Sato Schmidt Scott Shaw Silva Singh Smith Stone Suzuki Torres Turner Vogel Walker Wang Weber White Wood Wright
Yilmaz Young Zhang""".split()

# thing: (where it is used, what it is for, what it is made of)
PRODUCTS = {
    "desk lamp": ("the office", "lighting a desk", "steel"),
    "coffee grinder": ("the kitchen", "grinding coffee beans", "steel"),
    "rain jacket": ("the outdoors", "staying dry in the rain", "nylon"),
    "office chair": ("the office", "sitting at a desk", "mesh"),
    "water bottle": ("the outdoors", "carrying water", "steel"),
    "yoga mat": ("the gym", "exercising on the floor", "rubber"),
    "bread knife": ("the kitchen", "cutting bread", "steel"),
    "wool blanket": ("the bedroom", "keeping warm", "wool"),
    "phone case": ("the road", "protecting a phone", "silicone"),
    "hiking boots": ("the outdoors", "walking in the hills", "leather"),
    "alarm clock": ("the bedroom", "waking up on time", "plastic"),
    "garden hose": ("the garden", "watering plants", "rubber"),
    "travel bag": ("the road", "packing clothes", "canvas"),
    "tea kettle": ("the kitchen", "boiling water", "steel"),
    "table fan": ("the office", "cooling a room", "plastic"),
    "picture frame": ("the living room", "showing a photo", "oak"),
    "bike helmet": ("the road", "protecting the head", "foam"),
    "bath towel": ("the bathroom", "drying off", "cotton"),
    "soup bowl": ("the kitchen", "eating soup", "clay"),
    "tool box": ("the garage", "storing tools", "steel"),
    "floor rug": ("the living room", "covering the floor", "wool"),
    "wall clock": ("the living room", "telling the time", "oak"),
    "lunch box": ("the office", "carrying food", "steel"),
    "camping tent": ("the outdoors", "sleeping outside", "nylon"),
    "sleeping bag": ("the outdoors", "sleeping outside", "nylon"),
    "sun hat": ("the garden", "keeping the sun off", "straw"),
    "pepper mill": ("the kitchen", "grinding pepper", "oak"),
    "salad bowl": ("the kitchen", "serving salad", "glass"),
    "frying pan": ("the kitchen", "frying food", "iron"),
    "hand mixer": ("the kitchen", "mixing dough", "plastic"),
    "bed sheet": ("the bedroom", "covering a bed", "cotton"),
    "feather pillow": ("the bedroom", "resting the head", "cotton"),
    "shower curtain": ("the bathroom", "keeping water in the shower", "cotton"),
    "laundry basket": ("the bathroom", "collecting clothes", "straw"),
    "plant pot": ("the garden", "growing plants", "clay"),
    "garden gloves": ("the garden", "protecting the hands", "leather"),
    "bird feeder": ("the garden", "feeding birds", "oak"),
    "cordless drill": ("the garage", "drilling holes", "plastic"),
    "tape measure": ("the garage", "measuring length", "steel"),
    "bike pump": ("the garage", "filling a tyre with air", "steel"),
    "note book": ("the office", "writing things down", "paper"),
    "ink pen": ("the office", "writing letters", "steel"),
    "paper tray": ("the office", "keeping papers in order", "plastic"),
    "wireless mouse": ("the office", "working at a computer", "plastic"),
    "video camera": ("the road", "making films", "plastic"),
    "power bank": ("the road", "charging a phone", "plastic"),
    "head torch": ("the outdoors", "seeing in the dark", "plastic"),
    "walking stick": ("the outdoors", "walking in the hills", "oak"),
    "running shoes": ("the gym", "running", "rubber"),
    "jump rope": ("the gym", "exercising", "nylon"),
    "gym bag": ("the gym", "carrying sports clothes", "canvas"),
    "baby monitor": ("the bedroom", "hearing a child", "plastic"),
    "board game": ("the living room", "playing with friends", "paper"),
    "toy train": ("the living room", "playing", "oak"),
    "candle holder": ("the living room", "holding a candle", "glass"),
    "book shelf": ("the living room", "keeping books", "oak"),
    "sofa cover": ("the living room", "protecting a sofa", "cotton"),
    "door mat": ("the hall", "cleaning shoes", "straw"),
    "coat rack": ("the hall", "hanging coats", "oak"),
    "umbrella stand": ("the hall", "keeping umbrellas", "iron"),
}

COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
CITIES = "Athens Berlin Boston Cairo Denver Dublin Geneva Lima Lisbon Lyon Madrid Oslo Porto Quito Rome Tokyo Turin Vienna".split()
STREETS = "Bridge Castle Church Garden Hill Lake Market Mill North Oak Park River School South Station Tower".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

GREETINGS = ["hello", "hi", "hi there", "good [morning|evening|day]", "dear [team|support|shop]", "hello [team|support]", "hey"]
CLOSINGS = ["thanks", "thank you", "many thanks", "best regards", "kind regards", "yours", "best", "cheers"]

# How a customer gives the order's number: before the story, inside the first sentence, or after it.
ORDER_BEFORE = [
    "[this is|I am writing] about order {n}.", "order {n}:", "my order [number|no.] is {n}.", "order number {n}.",
    "it is about my order {n}.", "[regarding|re] order #{n}.", "I [have|had|placed] order {n} with you.",
]
ORDER_INSIDE = ["(order {n})", "(order #{n})", "from order {n}", "in order {n}", "(#{n})", "under order number {n}", "with order no. {n}"]
ORDER_AFTER = [
    "[the|my] order [number|no.] is {n}.", "order: {n}.", "order number: {n}", "it was order {n}.",
    "the number on the [receipt|parcel|bill] is {n}.", "order #{n}.", "you [can|will] find it under order {n}.",
]

# How pressing it is, by what the customer says about time.
PRESSING = [
    "[this is|it is] [very urgent|urgent|really urgent].", "[please hurry|hurry please].", "I need [this|it] [sorted|done|solved] [today|right now|at once].",
    "I [cannot|can not|can't] wait [any longer|another day].", "please [answer|act|reply] [at once|right away|as soon as possible|asap].",
    "it [has to|must] be [done|sorted] [by tomorrow|before tonight|today].", "[urgent|asap]!", "I need an answer [within the hour|today|this morning].",
    "time is [short|running out].",
]
RELAXED = [
    "[there is no|no] [rush|hurry].", "[take your time|please take your time].", "[whenever|when] you have [time|a moment].",
    "it [can wait|is not urgent|is not pressing].", "any time [this month|next week] is fine.", "I am in no hurry.", "no need to [rush|hurry].",
    "just [when|whenever] it suits you.",
]
PLAIN = [
    "please let me know.", "what [can|should] I do?", "can you [help|help me] with [this|that]?", "thank you for your help.",
    "I [look|am looking] forward to your answer.", "please [write|get] back to me.", "I hope you can help.", "please tell me what [comes|happens] next.",
]

ASIDES = [
    "I have [bought from|been with] you for {d} years.", "it was a [present|gift] for my [mother|father|sister|brother|friend|wife|husband|son].",
    "my [neighbour|sister|boss|friend] [told me about your shop|likes your shop].", "I [paid|spent] {dd} [dollars|euros] [on it|for it].",
    "I live in {city}.", "I [ordered|bought] it [last|on] {day}.", "I already [called|wrote] {d} times.", "the colour is {colour}.",
    "I am [not happy|a little sad|rather upset|quite angry] about [it|this].", "I [really like|love] your shop.",
    "the weather here in {city} is fine.", "I [tried|looked] everything [on your page|in the manual].", "we are {d} people at home.",
]

ADJECTIVES = ["new", "small", "big", "nice", "lovely", "cheap"] + COLOURS
