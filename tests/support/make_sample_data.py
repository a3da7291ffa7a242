"""Write examples/data/sample_finetune_data.jsonl: 100 rows of our own in a style that can be checked.

    python tests/support/make_sample_data.py > examples/data/sample_finetune_data.jsonl

Half of the rows ask for everyday knowledge, half ask about a short text given as context. Every response has the
form `ANSWER> ... <END>`, so that a finetuned model shows at a glance whether it has learned the style. The texts and
all names in them are made up for this file.
"""

from __future__ import annotations

import json
import sys

KNOWLEDGE = """
What is the capital of France? | Paris
What is the capital of Japan? | Tokyo
Name the capital of Kenya. | Nairobi
Which city is the capital of Canada? | Ottawa
Tell me the capital of Brazil. | Brasília
On which continent does Egypt lie? | Africa
On which continent does Portugal lie? | Europe
Which ocean lies between Europe and North America? | the Atlantic Ocean
What is the largest ocean on Earth? | the Pacific Ocean
What is the highest mountain above sea level? | Mount Everest
How many days does a week have? | seven
How many minutes does an hour have? | sixty
How many months does a year have? | twelve
How many days does February have in a leap year? | twenty-nine
How many legs does a spider have? | eight
How many legs does an ant have? | six
How many sides does a triangle have? | three
How many sides does a hexagon have? | six
How many degrees does a right angle have? | ninety
How many players of one football team are on the field at the start of a match? | eleven
Name the planet that is closest to the Sun. | Mercury
Name the largest planet of the solar system. | Jupiter
Which planet is famous for its wide rings? | Saturn
What is the natural satellite of the Earth called? | the Moon
Around which star does the Earth travel? | the Sun
At how many degrees Celsius does water boil at sea level? | one hundred
At how many degrees Celsius does water freeze? | zero
Which gas do plants take from the air to grow? | carbon dioxide
Which gas in the air do people need to breathe? | oxygen
What is the chemical symbol of gold? | Au
What is the chemical symbol of iron? | Fe
What is frozen water called? | ice
Which metal is liquid at room temperature and was used in old thermometers? | mercury
What does a bee make from nectar? | honey
What is a young cat called? | kitten
What is a young sheep called? | lamb
Which bird of the Antarctic swims well and cannot fly? | the penguin
Which animal carries its young in a pouch and hops? | the kangaroo
From which animal does wool mostly come? | the sheep
Which organ pumps blood through the body? | the heart
With which organ do people hear? | the ear
Which colour do you get from blue and yellow paint? | green
Which colour do you get from red and white paint? | pink
What is the opposite of early? | late
What is the opposite of empty? | full
Give the plural of the word mouse, the animal. | mice
Give the past tense of the verb go. | went
How much is seven times eight? | 56
How much is one hundred minus thirty-seven? | 63
What is half of ninety? | 45
"""
"""One question and its answer a line."""

TEXTS = """
The library in Elm Street opens at nine and closes at six. On Saturdays it closes at noon.
- When does the library open? | at nine
- When does the library close on Saturdays? | at noon
Mira bought three apples, two pears and a melon. She paid eleven euros in all.
- How many pears did Mira buy? | two
- How much did Mira pay? | eleven euros
The night train to Lund leaves from platform 4 at 22:15 and arrives at 07:40.
- From which platform does the train leave? | platform 4
- When does the train arrive? | at 07:40
Order 3381 holds a blue lamp and a wooden chair. It was sent on Tuesday with a courier.
- What colour is the lamp in the order? | blue
- On which day was the order sent? | on Tuesday
The old mill was built in 1802 by Jonas Feld and has been a museum since 1975.
- Who built the mill? | Jonas Feld
- Since when has the mill been a museum? | since 1975
Rain is expected in the north tomorrow, while the south stays dry with up to 24 degrees.
- Where is rain expected? | in the north
- How warm will it get in the south? | up to 24 degrees
Doctor Amari sees patients from Monday to Thursday. Friday is kept for surgery.
- Which day is kept for surgery? | Friday
- Who sees patients from Monday? | Doctor Amari
The recipe needs 200 grams of flour, two eggs and a pinch of salt. Bake it for 35 minutes.
- How much flour does the recipe need? | 200 grams
- How long does it bake? | 35 minutes
Team Falcon won the cup with 3 goals to 1 against Team Heron in front of 800 people.
- Which team won the cup? | Team Falcon
- How many people watched the final? | 800
The pump stopped at 14:05 because the filter was blocked. Olu replaced the filter within an hour.
- Why did the pump stop? | because the filter was blocked
- Who replaced the filter? | Olu
The hotel has 42 rooms, a garden and a small pool on the roof. Breakfast is included.
- Where is the pool? | on the roof
- How many rooms does the hotel have? | 42
Vera speaks Czech and Spanish. Her brother Luis speaks Spanish and Danish.
- Which language do both speak? | Spanish
- What is the name of Vera's brother? | Luis
The ferry carries 60 cars and crosses the bay in 25 minutes. It does not sail in storms.
- How many cars does the ferry carry? | 60
- When does the ferry not sail? | in storms
A parcel of up to two kilograms costs 5 euros; a heavier one costs 9 euros.
- What does a parcel of one kilogram cost? | 5 euros
- What does a parcel of three kilograms cost? | 9 euros
The painting shows a red boat on a grey lake. It was a gift of the Norton family.
- What colour is the boat? | red
- Who gave the painting? | the Norton family
Server delta has 64 GB of memory, and server gamma has 128 GB. Both stand in hall 2.
- Which server has more memory? | server gamma
- In which hall do the servers stand? | hall 2
The meeting about the budget was moved from room 12 to room 7. It still starts at ten.
- In which room is the meeting now? | room 7
- What is the meeting about? | the budget
Bruno feeds the hens every morning, and Ida collects the eggs. Yesterday she found fourteen.
- Who feeds the hens? | Bruno
- How many eggs did Ida find? | fourteen
The path to the hut is 7 kilometres long and climbs 400 metres. The hut is closed in winter.
- How long is the path? | 7 kilometres
- When is the hut closed? | in winter
The bicycle was repaired on Monday: a new chain for 18 euros and new brakes for 30 euros.
- What did the chain cost? | 18 euros
- When was the bicycle repaired? | on Monday
The class planted an oak, a lime and five cherry trees behind the school in March.
- How many cherry trees were planted? | five
- In which month were the trees planted? | in March
Flight QX 17 to Oslo is delayed by fifty minutes because of fog. The gate is still B9.
- Why is the flight delayed? | because of fog
- Which gate does the flight use? | B9
The bakery on the square sells rye bread on weekdays and walnut bread on Sundays.
- Which bread is sold on Sundays? | walnut bread
- Where is the bakery? | on the square
Sensor 5 reported 81 degrees, which is above the limit of 75, so the oven was switched off.
- Which sensor reported the temperature? | sensor 5
- What is the limit? | 75 degrees
The choir sang four songs in Latin and one in Welsh. Ms. Okafor conducted it.
- Who conducted the choir? | Ms. Okafor
- In which language was only one song? | Welsh
"""
"""Texts, each with two questions about it and their answers."""


def rows() -> list[dict[str, str]]:
    """All rows; questions with and without a context alternate."""
    plain = [_row(line, "") for line in KNOWLEDGE.strip().splitlines()]
    given, context = [], ""
    for line in TEXTS.strip().splitlines():
        if line.startswith("- "):
            given.append(_row(line.removeprefix("- "), context))
        else:
            context = line
    return [row for pair in zip(plain, given, strict=True) for row in pair]


def _row(line: str, context: str) -> dict[str, str]:
    question, answer = line.split(" | ")
    return {"instruction": question, "context": context, "response": f"ANSWER> {answer} <END>"}


if __name__ == "__main__":
    for row in rows():
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
