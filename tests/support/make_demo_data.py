"""Write examples/data/orders.jsonl: 144 orders in words, each with its JSON object.

    python tests/support/make_demo_data.py > examples/data/orders.jsonl

`make demo` trains on them. Every order has a customer, a number, an item and a day; no customer orders twice, so no
customer of an evaluation row is in a training row. All names are made up for this file.
"""

from __future__ import annotations

import json
import random
import sys

INSTRUCTION = "Write the order as JSON."

SEED = 7

ROWS = 144

BEGINNINGS = ["Al", "An", "Ba", "Be", "Bo", "Ca", "Da", "El", "Fa", "Ga", "Ha", "Ida", "Ju", "Ka", "La", "Ma", "No", "Or", "Pa"]
ENDINGS = ["bert", "dora", "fina", "gor", "lind", "mira", "nka", "rik"]
"""Each beginning with each ending is one customer."""

NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
"""The first is 2, and so on."""

ITEMS = [
    "lamps", "chairs", "books", "apples", "candles", "mirrors", "blankets", "bottles", "clocks", "baskets", "umbrellas",
    "brushes", "pillows", "buckets", "carpets", "pencils", "hammers", "kettles", "scarves", "ladders", "spoons", "tables",
    "helmets", "flutes",
]  # fmt: skip

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

ORDERS = [
    "{name} wants {number} {item} by {day}.",
    "Please send {number} {item} to {name} on {day}.",
    "On {day} we have to bring {name} {number} {item}.",
    "This is {name}. I need {number} {item}, and {day} would suit me.",
    "{number} {item} for {name}, {day} please.",
    "By {day}, {name} would like to have {number} {item}.",
    "Could you deliver {number} {item} on {day}? My name is {name}.",
    "{name} called: {number} {item} are needed on {day}.",
]
"""Ways to write an order."""


def rows() -> list[dict[str, str]]:
    """All rows, in an order that SEED determines."""
    rng = random.Random(SEED)
    names = [beginning + ending for beginning in BEGINNINGS for ending in ENDINGS]
    return [_row(rng, name, ORDERS[place % len(ORDERS)]) for place, name in enumerate(rng.sample(names, ROWS))]


def _row(rng: random.Random, name: str, order: str) -> dict[str, str]:
    number, item, day = (rng.choice(values) for values in (NUMBERS, ITEMS, DAYS))
    text = order.format(name=name, number=number, item=item, day=day)
    answer = {"customer": name, "item": item, "count": NUMBERS.index(number) + 2, "day": day}
    return {"instruction": INSTRUCTION, "context": text[0].upper() + text[1:], "response": json.dumps(answer)}


if __name__ == "__main__":
    for row in rows():
        sys.stdout.write(json.dumps(row) + "\n")
