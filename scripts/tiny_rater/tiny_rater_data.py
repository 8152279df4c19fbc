"""The small world that tiny-rater is trained and measured on: tasks, responses and rating texts.

A *family* draws a `Task`: an instruction, the wordings a response may take, and contents that are
right, wrong or partly right. `respond` turns a task into a good response or a defective one, and
`rows` makes a data set of them. Two families (`UNSEEN_FAMILIES`) never take part in training.
A checksum of its text says whether an instruction is held out (`is_held_out`, one in six): training
draws from the others only, so no evaluated instruction was trained on, whatever the seeds.

    python scripts/tiny_rater/tiny_rater_data.py --seed 7 --rows 5     # look at a few rows
"""

from __future__ import annotations

import argparse
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

K = 5
PACKAGE_DATA = Path(__file__).resolve().parents[2] / "selectit_hf" / "data"
TEMPLATE = "{prompt}\n\nInstruction:{instruction}\nResponse:{response}\nThe answer is: \n"


@dataclass(frozen=True)
class Task:
    """An instruction with the contents of right, wrong and partly right responses."""

    instruction: str
    input: str
    forms: Sequence[str]  # wordings of a response; `{}` stands for the content
    right: str
    wrong: Sequence[str]
    partly: Sequence[str] = ()
    key: str = ""  # tasks with equal keys accept each other's responses

    @property
    def prompt(self) -> str:
        """The instruction as a rating text shows it, with the input on the next line."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def good(self) -> list[str]:
        """The responses known to be right; all of them, unless the task is open."""
        return [fill(form, self.right) for form in self.forms]

    @property
    def is_open(self) -> bool:
        """Whether other contents would be right as well, as in "name three fruits"."""
        return bool(self.key)

    def accepts_answer_of(self, other: Task) -> bool:
        """Whether a good response to `other` is one to this task too."""
        return (self.key or self.right) == (other.key or other.right)


# --- words -------------------------------------------------------------------------------------

KINDS = {
    "fruits": ["apple", "pear", "plum", "peach", "mango", "lemon", "cherry", "grape"],
    "animals": ["horse", "cow", "goat", "rabbit", "tiger", "lion", "wolf", "bear"],
    "tools": ["hammer", "saw", "drill", "ladder", "shovel", "rake", "axe", "chisel"],
    "colours": ["red", "blue", "green", "yellow", "purple", "pink", "black", "white"],
    "vehicles": ["car", "bus", "train", "truck", "tram", "boat", "ferry", "plane"],
    "clothes": ["shirt", "coat", "hat", "scarf", "glove", "sock", "boot", "belt"],
}
ONE_OF = {
    "fruits": "a fruit",
    "animals": "an animal",
    "tools": "a tool",
    "colours": "a colour",
    "vehicles": "a vehicle",
    "clothes": "a piece of clothing",
}
NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
PLACES = ["park", "school", "market", "library", "station", "beach", "museum", "garden"]
CITIES = ["Paris", "Rome", "Madrid", "Vienna", "Oslo", "Athens", "Lisbon", "Berlin"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
THINGS = ["apples", "books", "coins", "stamps", "cards", "shells", "pens", "plums"]
COUNT_WORDS = {2: "two", 3: "three", 4: "four"}
PAST = {
    "walks": "walked",
    "runs": "ran",
    "goes": "went",
    "rides": "rode",
    "drives": "drove",
    "hurries": "hurried",
    "returns": "returned",
    "comes": "came",
}
UNITS = [
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("weeks", "days", 7),
    ("days", "hours", 24),
    ("years", "months", 12),
    ("feet", "inches", 12),
]
# relation: (questions, full answer, {subject: value})
FACTS = {
    "capital": (
        [
            "What is the capital of {s}?",
            "Name the capital of {s}.",
            "Which city is the capital of {s}?",
        ],
        "The capital of {s} is {}.",
        {
            "France": "Paris",
            "Italy": "Rome",
            "Spain": "Madrid",
            "Austria": "Vienna",
            "Norway": "Oslo",
            "Greece": "Athens",
            "Portugal": "Lisbon",
            "Germany": "Berlin",
            "Japan": "Tokyo",
            "Egypt": "Cairo",
            "Poland": "Warsaw",
            "Sweden": "Stockholm",
        },
    ),
    "sound": (
        ["What sound does a {s} make?", "Which sound is made by a {s}?", "How does a {s} sound?"],
        "A {s} makes the sound {}.",
        {
            "dog": "woof",
            "cat": "meow",
            "cow": "moo",
            "sheep": "baa",
            "duck": "quack",
            "pig": "oink",
            "bee": "buzz",
            "snake": "hiss",
            "lion": "roar",
            "frog": "croak",
        },
    ),
    "young": (
        [
            "What is a young {s} called?",
            "Give the name for a young {s}.",
            "What do we call a baby {s}?",
        ],
        "A young {s} is called a {}.",
        {
            "dog": "puppy",
            "cat": "kitten",
            "cow": "calf",
            "sheep": "lamb",
            "horse": "foal",
            "goat": "kid",
            "bear": "cub",
            "duck": "duckling",
            "pig": "piglet",
            "frog": "tadpole",
        },
    ),
    "opposite": (
        [
            "What is the opposite of {s}?",
            "Give a word that means the opposite of {s}.",
            "Which word is the opposite of {s}?",
        ],
        "The opposite of {s} is {}.",
        {
            "hot": "cold",
            "big": "small",
            "fast": "slow",
            "old": "new",
            "light": "dark",
            "wet": "dry",
            "full": "empty",
            "open": "closed",
            "early": "late",
            "high": "low",
            "loud": "quiet",
            "rich": "poor",
            "hard": "soft",
            "near": "far",
        },
    ),
}
PRAISE = ["wonderful", "great", "lovely", "excellent", "delightful", "superb"]
BLAME = ["terrible", "awful", "dull", "horrible", "boring", "dreadful"]
REVIEWED = ["film", "book", "meal", "hotel", "concert", "trip", "game", "song"]
OPERATIONS = {
    "add": ("sum", "{x} + {y}"),
    "subtract": ("difference", "{x} - {y}"),
    "multiply": ("product", "{x} * {y}"),
    "divide": ("quotient", "{x} / {y}"),
    "largest": ("larger", "max({x}, {y})"),
    "smallest": ("smaller", "min({x}, {y})"),
}
SCENES = {
    "rain": ["falls on the roof", "fills the river", "makes the street wet"],
    "snow": ["covers the hills", "melts in spring", "lies deep in winter"],
    "the sun": ["rises in the east", "warms the garden", "sets in the evening"],
    "the sea": ["is deep and blue", "carries the ships", "smells of salt"],
    "the wind": ["moves the leaves", "fills the sails", "blows over the hills"],
    "a baker": ["bakes bread at night", "sells warm rolls", "works with flour"],
    "a farmer": ["grows wheat in the field", "milks the cows", "drives a tractor"],
    "a doctor": ["looks after the sick", "works in a clinic", "writes prescriptions"],
    "a forest": ["is full of tall trees", "gives shade in summer", "is home to owls"],
    "a teacher": ["explains the lesson", "writes on the board", "marks the tests"],
    "the moon": ["shines at night", "pulls the tides", "circles the earth"],
    "a clock": ["shows the time", "ticks on the wall", "rings at seven"],
}


# --- families ----------------------------------------------------------------------------------


def _near(rng: random.Random, value: int, count: int = 4, reach: int = 6) -> list[str]:
    """Plausible wrong numbers close to `value`, none of them negative."""
    options = [v for v in range(max(0, value - reach), value + reach + 1) if v != value]
    return [str(v) for v in rng.sample(options, count)]


def _opening(rng: random.Random) -> str:
    """A few words before an instruction that change nothing."""
    return rng.choice(["", "", "", "Please: ", "Quick question: ", "For a child: ", "Next task: "])


def _others(rng: random.Random, options: Sequence[str], right: str, count: int = 3) -> list[str]:
    return rng.sample([o for o in options if o != right], count)


def _scalar(instruction: str, right: int, wrong: Sequence[str], full: Sequence[str]) -> Task:
    forms = ["{}", "{}.", "The answer is {}.", "It is {}.", *full]
    return Task(instruction, "", forms, str(right), wrong)


def addition(rng: random.Random) -> Task:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    ask = rng.choice(
        [
            "What is {a} + {b}?",
            "Add {a} and {b}.",
            "Find the sum of {a} and {b}.",
            "Work out {a} + {b}.",
        ]
    )
    full = [f"{a} + {b} = {{}}", f"The sum of {a} and {b} is {{}}."]
    return _scalar(ask.format(a=a, b=b), a + b, _near(rng, a + b), full)


def subtraction(rng: random.Random) -> Task:
    a = rng.randint(3, 15)
    b = rng.randint(1, a - 1)
    ask = rng.choice(
        [
            "What is {a} - {b}?",
            "Subtract {b} from {a}.",
            "Take {b} away from {a}.",
            "Work out {a} - {b}.",
        ]
    )
    full = [f"{a} - {b} = {{}}", f"Taking {b} from {a} leaves {{}}."]
    return _scalar(ask.format(a=a, b=b), a - b, _near(rng, a - b), full)


def multiplication(rng: random.Random) -> Task:
    a, b = rng.randint(2, 8), rng.randint(2, 8)
    ask = rng.choice(
        [
            "What is {a} * {b}?",
            "Multiply {a} by {b}.",
            "What is {a} times {b}?",
            "Work out {a} * {b}.",
            "Find the product of {a} and {b}.",
        ]
    )
    wrong = [*_near(rng, a * b, 3), str(a * b + rng.choice([a, b, -a, -b])), str(a + b + 1)]
    full = [f"{a} * {b} = {{}}", f"The product of {a} and {b} is {{}}."]
    return _scalar(ask.format(a=a, b=b), a * b, [w for w in wrong if w != str(a * b)], full)


def word_problem(rng: random.Random) -> Task:
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(4, 12), rng.randint(1, 9)
    more = rng.random() < 0.5 or b >= a
    story = f"buys {b} more" if more else f"gives {b} away"
    instruction = f"{name} has {a} {thing} and {story}. How many {thing} are there now?"
    result = a + b if more else a - b
    forms = ["{}.", "There are {}.", f"{name} has {{}} now.", f"Now {name} has {{}}."]
    wrong = [f"{w} {thing}" for w in _near(rng, result)]
    partly = [f"{result} {t}" for t in _others(rng, THINGS, thing)]
    return Task(instruction, "", forms, f"{result} {thing}", wrong, partly)


def conversion(rng: random.Random) -> Task:
    big, small, factor = rng.choice(UNITS)
    n = rng.randint(2, 9)
    ask = rng.choice(
        [
            "How many {small} are {n} {big}?",
            "Convert {n} {big} to {small}.",
            "Change {n} {big} into {small}.",
            "Give {n} {big} in {small}.",
        ]
    )
    forms = [
        "{}",
        "{}.",
        f"{n} {big} = {{}}",
        f"{n} {big} are {{}}.",
        f"There are {{}} in {n} {big}.",
    ]
    value = n * factor
    wrong_values = {(n + 1) * factor, (n - 1) * factor, n * factor * 10, n + factor} - {value}
    wrong = [f"{w} {small}" for w in sorted(wrong_values)]
    partly = [f"{value} {u}" for u in _others(rng, sorted({u for _, u, _ in UNITS}), small)]
    instruction = ask.format(small=small, big=big, n=n)
    return Task(instruction, "", forms, f"{value} {small}", wrong, partly)


def sorting(rng: random.Random) -> Task:
    numbers = rng.sample(range(1, 21), rng.randint(3, 4))
    down = rng.random() < 0.4
    ask = rng.choice(
        [
            "Sort these numbers from {x} to {y}.",
            "Put the numbers in order from {x} to {y}.",
            "Order the numbers, {x} first and {y} last.",
        ]
    )
    x, y = ("largest", "smallest") if down else ("smallest", "largest")
    right = sorted(numbers, reverse=down)
    swap = rng.randrange(len(right) - 1)
    swapped = right.copy()
    swapped[swap], swapped[swap + 1] = swapped[swap + 1], swapped[swap]
    odd = right.copy()
    odd[rng.randrange(len(odd))] = rng.choice([v for v in range(1, 21) if v not in numbers])
    wrong = [
        v for v in (right[::-1], rng.sample(numbers, len(numbers))) if v not in (right, swapped)
    ]
    forms = ["{}", "{}.", "In order: {}.", "The sorted numbers are {}."]
    join = _join(", ")
    return Task(
        ask.format(x=x, y=y),
        join(numbers),
        forms,
        join(right),
        [join(w) for w in wrong],
        [join(swapped), join(odd)],
    )


def _join(separator: str) -> Callable[[Sequence], str]:
    return lambda items: separator.join(map(str, items))


def _some_words(rng: random.Random, count: int) -> list[str]:
    return rng.sample([w for words in KINDS.values() for w in words], count)


def reversing(rng: random.Random) -> Task:
    *words, stranger = _some_words(rng, rng.randint(4, 5))
    ask = rng.choice(
        [
            "Reverse the order of these words.",
            "Write the words in reverse order.",
            "List the words from last to first.",
        ]
    )
    right = words[::-1]
    swapped = [*right[:-2], right[-1], right[-2]]
    replaced = [*right[:-1], stranger]
    wrong = [words, [*words[1:], words[0]]]
    join = _join(" ")
    forms = ["{}", "{}.", "In reverse: {}.", "The reversed words are {}."]
    return Task(
        ask,
        join(words),
        forms,
        join(right),
        [join(w) for w in wrong],
        [join(swapped), join(replaced)],
    )


def upper_case(rng: random.Random) -> Task:
    words = [rng.choice(KINDS["colours"]), rng.choice(KINDS["clothes"])]
    if rng.random() < 0.5:
        words.append(rng.choice(["here", "there", "now", "today"]))
    ask = rng.choice(
        [
            "Write this in capital letters.",
            "Change the text to upper case.",
            "Turn every letter into a capital.",
        ]
    )
    text = " ".join(words)
    other = [rng.choice(_others(rng, KINDS["colours"], words[0])), *words[1:]]
    half = rng.randrange(len(words))
    partly = [
        " ".join(w.upper() if (i == half) else w for i, w in enumerate(words)),
        " ".join(other).upper(),
    ]
    wrong = [text, text.capitalize(), " ".join(w.capitalize() for w in words)]
    return Task(
        ask,
        text,
        ["{}", "{}", "Here it is: {}", "In capital letters: {}"],
        text.upper(),
        wrong,
        partly,
    )


def listing(rng: random.Random) -> Task:
    kind, other = rng.sample(list(KINDS), 2)
    count = rng.randint(2, 4)
    ask = _opening(rng) + rng.choice(
        ["Name {n} {kind}.", "List {n} {kind}.", "Give me {n} {kind}.", "Write down {n} {kind}."]
    )
    words = rng.sample(KINDS[kind], count)
    strangers = rng.sample(KINDS[other], count)
    mixed = words.copy()
    mixed[rng.randrange(count)] = strangers[0]
    wrong = [_phrase(strangers), _phrase(rng.sample(KINDS[other], count))]
    partly = [_phrase(mixed)] if count == 2 else [_phrase(mixed), _phrase(words[:-1])]
    number = COUNT_WORDS[count]
    forms = ["{}", "{}.", "Here you are: {}.", f"{number.capitalize()} {kind} are {{}}."]
    instruction = ask.format(n=number, kind=kind)
    return Task(instruction, "", forms, _phrase(words), wrong, partly, key=f"{count} {kind}")


def _phrase(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def bullets(rng: random.Random) -> Task:
    count = rng.randint(2, 4)
    drawn = _some_words(rng, 2 * count)
    words, strangers = drawn[:count], drawn[count:]
    numbered = rng.random() < 0.4
    style = "a numbered list" if numbered else "a bulleted list"
    ask = rng.choice(
        ["Format the items as {style}.", "Turn this into {style}.", "Write these items as {style}."]
    )
    replaced = words.copy()
    replaced[rng.randrange(count)] = strangers[0]
    right = _lines(words, numbered)
    wrong = [", ".join(words), " ".join(words), _lines(strangers, numbered)]
    partly = [_lines(words[:-1], numbered), _lines(replaced, numbered), _lines(words, not numbered)]
    forms = ["{}", "{}", "Here is the list:\n{}"]
    return Task(ask.format(style=style), ", ".join(words), forms, right, wrong, partly)


def _lines(words: Sequence[str], numbered: bool) -> str:
    return "\n".join(f"{i}. {w}" if numbered else f"- {w}" for i, w in enumerate(words, 1))


def record(rng: random.Random) -> Task:
    name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randint(6, 60)
    ask = rng.choice(
        ["Write this as JSON.", "Turn the sentence into JSON.", "Give the data as a JSON object."]
    )
    text = rng.choice(["{n} is {a} and lives in {c}.", "{n} from {c} is {a} years old."])
    show = '{{"name": "{n}", "age": {a}, "city": "{c}"}}'
    right = {"n": name, "a": age, "c": city}
    slips = [right | {key: value} for key, value in _slips(rng, right)]
    wrong = [f"name: {name}, age: {age}, city: {city}", f"{name}, {age}, {city}"]
    return Task(
        ask,
        text.format(**right),
        ["{}", "{}", "Here is the JSON: {}"],
        show.format(**right),
        wrong,
        [show.format(**s) for s in slips],
    )


def _slips(rng: random.Random, right: dict) -> list[tuple[str, str]]:
    return [
        ("n", _others(rng, NAMES, right["n"], 1)[0]),
        ("a", _near(rng, right["a"], 1)[0]),
        ("c", _others(rng, CITIES, right["c"], 1)[0]),
    ]


def facts(rng: random.Random) -> Task:
    questions, full, values = FACTS[rng.choice(list(FACTS))]
    subject = rng.choice(list(values))
    forms = ["{}", "{}", "{}.", "It is {}.", "The answer is {}.", full.replace("{s}", subject)]
    right = values[subject]
    wrong = _others(rng, sorted(set(values.values())), right)
    instruction = _opening(rng) + rng.choice(questions).format(s=subject)
    return Task(instruction, "", forms, right, wrong)


def past_tense(rng: random.Random) -> Task:
    name, verb, place = rng.choice(NAMES), rng.choice(list(PAST)), rng.choice(PLACES)
    ask = rng.choice(
        [
            "Rewrite in the past tense.",
            "Put the sentence in the past tense.",
            "Change this to the past.",
        ]
    )
    day = rng.choice(["", " on " + rng.choice(DAYS)])
    say = "{n} {v} to the {p}{d}."
    right = {"n": name, "v": PAST[verb], "p": place, "d": day}
    other_verb = PAST[_others(rng, list(PAST), verb, 1)[0]]
    wrong = [right | {"v": verb}, right | {"v": "will " + verb}]
    partly = [
        right | {"p": _others(rng, PLACES, place, 1)[0]},
        right | {"n": _others(rng, NAMES, name, 1)[0]},
        right | {"v": other_verb},
    ]
    forms = ["{}", "{}", "In the past tense: {}", "Here it is: {}"]
    return Task(
        ask,
        say.format(n=name, v=verb, p=place, d=day),
        forms,
        say.format(**right),
        [say.format(**w) for w in wrong],
        [say.format(**p) for p in partly],
    )


def sentiment(rng: random.Random) -> Task:
    good = rng.random() < 0.5
    word, thing = rng.choice(PRAISE if good else BLAME), rng.choice(REVIEWED)
    review = rng.choice(
        [
            "The {t} was {w}.",
            "Such a {t}, {w}!",
            "I found the {t} {w}.",
            "It was one {w} {t}.",
            "We all thought the {t} was {w}.",
        ]
    )
    ask = rng.choice(
        [
            "Is this review positive or negative?",
            "Classify the review as positive or negative.",
            "Say whether the review is positive or negative.",
        ]
    )
    right, wrong = ("positive", "negative") if good else ("negative", "positive")
    forms = [
        "{}",
        "{}.",
        "It is {}.",
        "The review is {}.",
        "This is a {} review.",
        f"A {{}} review of a {thing}.",
    ]
    return Task(ask, review.format(t=thing, w=word), forms, right, [wrong])


def category(rng: random.Random) -> Task:
    kinds = rng.sample(list(KINDS), 3)
    kind = rng.choice(kinds)
    word = rng.choice(KINDS[kind])
    options = [ONE_OF[k] for k in kinds]
    choice = f"{options[0]}, {options[1]} or {options[2]}"
    ask = rng.choice(["Is {w} {c}?", "Classify {w}: {c}?", "What is {w}: {c}?"])
    forms = ["{}", "It is {}.", f"{word.capitalize()} is {{}}.", "The answer is {}."]
    right = ONE_OF[kind]
    return Task(ask.format(w=word, c=choice), "", forms, right, [o for o in options if o != right])


def code(rng: random.Random) -> Task:
    name = rng.choice(list(OPERATIONS))
    noun, body = OPERATIONS[name]
    x, y = rng.choice([("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("s", "t")])
    ask = rng.choice(
        [
            "Write a Python function {f} that returns the {n} of {x} and {y}.",
            "Define {f}({x}, {y}) in Python to return the {n} of both.",
            "Give Python code for {f}, the {n} of {x} and {y}.",
            "In Python, code {f} of {x} and {y}, their {n}.",
        ]
    )

    def show(f: str, expression: str) -> str:
        return f"def {f}({x}, {y}):\n    return {expression.format(x=x, y=y)}"

    other = _others(rng, list(OPERATIONS), name, 1)[0]
    wrong = [show(other, OPERATIONS[other][1]), f"{name} = {x}", f"print({x})\nprint({y})"]
    partly = [show(name, OPERATIONS[other][1]), show(other, body), show(name, x)]
    forms = ["{}", "{}", "Here is the code:\n{}"]
    instruction = _opening(rng) + ask.format(f=name, n=noun, x=x, y=y)
    return Task(instruction, "", forms, show(name, body), wrong, partly)


def extraction(rng: random.Random) -> Task:
    name, city, day = rng.choice(NAMES), rng.choice(CITIES), rng.choice(DAYS)
    text = rng.choice(
        [
            "{n} took the train to {c} on {d}.",
            "On {d}, {n} flew to {c}.",
            "{n} will be in {c} on {d}.",
        ]
    )
    asked = rng.choice(["who", "where", "when", "who and where", "who and when"])
    ask = {
        "who": "Who is the text about?",
        "where": "Which city is in the text?",
        "when": "Which day is in the text?",
        "who and where": "Give the person and the city.",
        "who and when": "Give the person and the day.",
    }[asked]
    values = {"who": (name, NAMES), "where": (city, CITIES), "when": (day, DAYS)}
    parts = [values[a] for a in asked.split(" and ")]
    right = [value for value, _ in parts]
    others = [_others(rng, options, value, 1)[0] for value, options in parts]
    wrong = [" and ".join(others)]
    if len(parts) == 1:
        wrong += [value for value in (name, city, day) if value != right[0]]
    partly = (
        [f"{right[0]} and {others[1]}", f"{others[0]} and {right[1]}"] if len(parts) == 2 else []
    )
    forms = ["{}", "{}.", "The text says {}.", "The answer is {}."]
    return Task(ask, text.format(n=name, c=city, d=day), forms, " and ".join(right), wrong, partly)


def sentence(rng: random.Random) -> Task:
    topic, other = rng.sample(list(SCENES), 2)
    ask = rng.choice(
        [
            "Write a sentence about {t}.",
            "Say something about {t}.",
            "Describe {t} in one sentence.",
            "Tell me what {t} does.",
            "Write a short line on {t}.",
        ]
    )
    first, second = rng.sample(SCENES[topic], 2)
    forms = ["{}."] if rng.random() < 0.5 else [f"{{}} and {second}."]
    wrong = [f"{other.capitalize()} {v}" for v in SCENES[other]]
    partly = [f"{topic.capitalize()} {v}" for v in SCENES[other]]
    right = f"{topic.capitalize()} {first}"
    return Task(_opening(rng) + ask.format(t=topic), "", forms, right, wrong, partly, key=topic)


def comparison(rng: random.Random) -> Task:
    a, b = rng.sample(range(1, 61), 2)
    larger = rng.random() < 0.5
    word = "larger" if larger else "smaller"
    ask = rng.choice(
        [
            "Which is {w}, {a} or {b}?",
            "Pick the {w} number: {a} or {b}.",
            "Of {a} and {b}, which is {w}?",
        ]
    )
    right = max(a, b) if larger else min(a, b)
    wrong = [str(a + b - right)]
    return _scalar(ask.format(w=word, a=a, b=b), right, wrong, [f"The {word} number is {{}}."])


def odd_one_out(rng: random.Random) -> Task:
    kind, other = rng.sample(list(KINDS), 2)
    stranger = rng.choice(KINDS[other])
    words = [*rng.sample(KINDS[kind], 3), stranger]
    rng.shuffle(words)
    ask = rng.choice(
        [
            "Which word does not belong?",
            "Find the odd one out.",
            "One word does not fit. Which one?",
        ]
    )
    forms = ["{}", "{}.", "The odd one out is {}.", "{} does not belong with the others."]
    return Task(ask, ", ".join(words), forms, stranger, [w for w in words if w != stranger])


SEEN_FAMILIES: dict[str, Callable[[random.Random], Task]] = {
    f.__name__: f
    for f in (
        addition,
        subtraction,
        multiplication,
        word_problem,
        conversion,
        sorting,
        reversing,
        upper_case,
        listing,
        bullets,
        record,
        facts,
        past_tense,
        sentiment,
        category,
        code,
        extraction,
        sentence,
    )
}
UNSEEN_FAMILIES = {f.__name__: f for f in (comparison, odd_one_out)}
FAMILIES = SEEN_FAMILIES | UNSEEN_FAMILIES


# --- responses ---------------------------------------------------------------------------------

# How a defect is rated: the middle of the grades and their spread. A good row is a clear 5; how
# bad a bad row is remains uncertain. The formula multiplies the rating by the certainty, so that a
# *sure* 1 would outscore an unsure 2: narrow grades at the bottom of the scale would be ranked up.
GRADES = {
    "none": (5.0, 0.6),
    "partly_right": (2.8, 2.0),
    "truncated": (2.3, 2.0),
    "wrong": (1.9, 2.0),
    "empty": (1.6, 2.0),
    "repetitive": (1.6, 2.0),
    "copied": (1.4, 2.0),
    "off_topic": (1.2, 2.0),
    "garbled": (1.0, 2.0),
}
DEFECTS = tuple(d for d in GRADES if d != "none")

EMPTY = """\
That is a good question.
It depends on many things.
There are many ways to see it.
This is an important matter.
Many people ask about this.
One could say a lot here.
It is what it is.
There is much to think about.
Some say yes and some say no.
I will do my best to help with this.
Of course, here is what you need.
As always, the details matter.
A lot has been said on {w}.
When it comes to {w}, it depends.
The matter of {w} is worth a thought.
Everybody knows {w} in some way.
""".splitlines()


def rating_target(defect: str) -> list[float]:
    """A distribution over the grades 1..K: a discretised bell curve around the defect's grade."""
    middle, spread = GRADES[defect]
    weights = [math.exp(-(((grade - middle) / spread) ** 2) / 2) for grade in range(1, K + 1)]
    return [w / sum(weights) for w in weights]


def fill(form: str, content: str) -> str:
    text = form.replace("{}", content)
    return text[:1].upper() + text[1:] if form.startswith("{}") and form != "{}" else text


def _good(task: Task, rng: random.Random) -> str:
    return fill(rng.choice(task.forms), task.right)


def _truncate(text: str, content: str, rng: random.Random) -> str | None:
    """Cut inside the content or before it, so that the response is certainly incomplete."""
    end = text.lower().rfind(content.lower()) + len(content) - 1
    first = max(4, len(text) // 3)
    last = end if len(content) > 6 else end - len(content) + 1
    return text[: rng.randint(first, last)].rstrip() if last >= first else None


def _garble(text: str, rng: random.Random) -> str:
    def scramble(word: str) -> str:
        letters = list(word)
        rng.shuffle(letters)
        return "".join(letters)

    words = text.split(" ")
    mode = rng.randrange(3)
    if mode == 0 and len(words) >= 5:
        rng.shuffle(words)
        garbled = " ".join(words)
    elif mode == 1:
        garbled = " ".join(map(scramble, words))
    else:
        noise = "abcdeghiklmnoprstuvwxyz#%&?/"
        garbled = "".join(rng.choice(noise) if c != " " and rng.random() < 0.4 else c for c in text)
    return (
        garbled
        if garbled != text and len(text) >= 8
        else scramble(text + rng.choice(["#xk", "?zq", "%vr"]))
    )


def _repeat(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    if rng.random() < 0.5 and len(text) < 30:
        return " ".join([text] * rng.randint(2, 4))
    stop = rng.randint(1, len(words))
    return " ".join(words[:stop] + [words[stop - 1]] * rng.randint(2, 5))


def _empty(task: Task, rng: random.Random) -> str:
    words = [w.strip("?.:,") for w in task.instruction.split() if len(w) > 4]
    return rng.choice(EMPTY).replace("{w}", rng.choice(words or ["this"]).lower())


def respond(
    task: Task, defect: str, rng: random.Random, sibling: Task, stranger: Task
) -> str | None:
    """A response of the kind asked for, or None where the task does not allow that kind.

    `sibling` is another task of the same family (for a copied response), `stranger` one of another
    family (for an off-topic one).
    """
    if defect == "none":
        return _good(task, rng)
    response = (_spoil(task, defect, rng, sibling, stranger) or "").strip()
    return response if response and response not in task.good else None


def _spoil(
    task: Task, defect: str, rng: random.Random, sibling: Task, stranger: Task
) -> str | None:
    if defect in ("wrong", "partly_right"):
        contents = task.wrong if defect == "wrong" else task.partly
        return fill(rng.choice(task.forms), rng.choice(contents)) if contents else None
    if defect == "copied":
        return None if task.accepts_answer_of(sibling) else _good(sibling, rng)
    if defect == "off_topic":
        return _good(stranger, rng)
    if defect == "empty":
        return _empty(task, rng)
    good = _good(task, rng)
    if defect == "truncated":
        return _truncate(good, task.right, rng)
    return _garble(good, rng) if defect == "garbled" else _repeat(good, rng)


# --- rows --------------------------------------------------------------------------------------


def is_held_out(task: Task) -> bool:
    """Whether the task belongs to evaluation; depends on its text only."""
    return zlib.crc32(task.prompt.encode()) % 6 == 0


def draw(rng: random.Random, family: str, held_out: bool) -> Task:
    while True:
        task = FAMILIES[family](rng)
        if is_held_out(task) == held_out:
            return task


def draw_with_neighbours(
    rng: random.Random, family: str, families: Sequence[str], held_out: bool
) -> tuple[Task, Task, Task]:
    other = rng.choice([f for f in families if f != family])
    return (draw(rng, family, held_out), draw(rng, family, held_out), draw(rng, other, held_out))


# Kinds that many tasks do not allow are drawn more often, so that all are about equally frequent.
DEFECT_WEIGHTS = {
    "wrong": 1.15,
    "partly_right": 1.9,
    "truncated": 1.1,
    "off_topic": 1.0,
    "copied": 1.1,
    "garbled": 1.0,
    "repetitive": 0.95,
    "empty": 1.0,
}


def draw_defect(rng: random.Random) -> str:
    return rng.choices(list(DEFECT_WEIGHTS), list(DEFECT_WEIGHTS.values()))[0]


def _defective(
    rng: random.Random, family: str, families: Sequence[str], deck: list[str]
) -> tuple[Task, str, str]:
    """A task, its defective response and the kind: the first of the deck that the family allows."""
    while True:
        for defect in dict.fromkeys(deck):
            for _ in range(8):
                task, sibling, stranger = draw_with_neighbours(rng, family, families, held_out=True)
                response = respond(task, defect, rng, sibling, stranger)
                if response is not None:
                    deck.remove(defect)
                    return task, response, defect
        deck += rng.sample(DEFECTS, len(DEFECTS))


def rows(
    seed: int,
    count: int,
    families: Sequence[str] = tuple(SEEN_FAMILIES),
    defective: float = 0.4,
) -> Iterator[dict[str, str]]:
    """Evaluation rows `{instruction, input, output, family, defect}`.

    Families take turns. Kinds of defect are dealt from a deck, which keeps them equally frequent.
    """
    rng = random.Random(f"rows {seed}")
    deck: list[str] = []
    for i in range(count):
        family = families[i % len(families)]
        if rng.random() < defective:
            task, output, defect = _defective(rng, family, families, deck)
        else:
            task, defect = draw(rng, family, held_out=True), "none"
            output = _good(task, rng)
        yield {
            "instruction": task.instruction,
            "input": task.input,
            "output": output,
            "family": family,
            "defect": defect,
        }


# --- rating prompts ----------------------------------------------------------------------------

# A training phrasing takes one piece of every list; the package's own phrasings are used, too.
PHRASE_PARTS = (
    [
        "", "", "", "You are a strict judge. ", "You help to pick training data. ", "Be fair. ",
        "Here is a task with a reply. ", "Read carefully. ",
        "Look at the instruction and the response. ",
    ],
    [
        "Rate the response", "Grade the response below", "Score the answer", "Evaluate the answer",
        "Judge the quality of the reply", "Assess how good the response is",
        "Say how well the instruction is followed", "Mark the work below",
        "How good is this response? Rate it", "Give a grade to the pair",
    ],
    [
        " from 1 to {k}", " on a scale from 1 to {k}", " with a number between 1 and {k}",
        " using the numbers 1 to {k}", " with a whole number from 1 to {k}",
        " with 1 to {k} points",
    ],
    [
        ".", ".", " for accuracy.", " for helpfulness and correctness.",
        " by how complete and clear it is.", ", looking at relevance and detail.",
        " as an example to learn from.", ", thinking of a careful user.",
    ],
    [
        "", "", " A higher number is better.", " 1 is the worst and {k} the best.",
        " Use {k} only for excellent work.", " Reply with the number only.",
        " Wrong or empty responses get 1.", " 1 means poor, {k} means perfect.",
        " Poor replies get low grades, accurate ones high grades.",
    ],
)  # fmt: skip

WHOLE_PHRASES = """\
From 1 to {k}, what is this response worth?
Is the reply right? Write 1 for no, {k} for yes, or a number in between.
1 is bad, 2 is poor, 3 is fair, 4 is good, {k} is very good. Choose a number.
Points: 1 to {k}. Give more points to better replies.
How far, from 1 to {k}, does the reply solve the task?
Think about the task first. What number between 1 and {k} fits the reply?
The response is graded 1 to {k}. Which grade is it?
Somebody asked for this. Does the reply help? 1 means no help, {k} means all the help needed.
""".splitlines()

# Never trained on: other words, other sentence shapes, other places for the scale.
UNSEEN_RATING_PROMPTS = """\
Imagine you had sent this request yourself. On a ladder of 5 rungs, 1 at the bottom and 5 at the \
top, where would you place what came back?
A school teacher hands out marks, 5 for flawless homework and 1 for worthless homework. Which mark \
suits the text that follows?
Out of 5 stars, how many has the assistant earned here? Take stars away for mistakes, gaps and \
nonsense; 1 star is the minimum.
1 = unacceptable, 2 = weak, 3 = mixed, 4 = solid, 5 = outstanding. Pick the digit that describes \
the outcome.
Would you let a new colleague study the exchange printed underneath? Express your opinion as a \
figure: 1, certainly not; 5, without any doubt.
""".splitlines()


def seen_rating_prompts() -> list[str]:
    """The package's own rating prompts, for K grades."""
    text = (PACKAGE_DATA / "rating_prompts.txt").read_text(encoding="utf-8")
    return [line.replace("{k}", str(K)) for line in text.splitlines() if line.strip()]


def training_rating_prompt(rng: random.Random, package_prompts: Sequence[str]) -> str:
    """One of the package's prompts half of the time (its default five the most), else a new mix."""
    share = rng.random()
    if share < 0.35:
        return rng.choice(package_prompts[:K])
    if share < 0.5:
        return rng.choice(package_prompts[K:])
    whole = rng.random() < 0.3
    mixed = rng.choice(WHOLE_PHRASES) if whole else "".join(map(rng.choice, PHRASE_PARTS))
    prompt = mixed.replace("{k}", str(K))
    return _disturb(prompt, rng) if rng.random() < 0.6 else prompt


def _disturb(prompt: str, rng: random.Random) -> str:
    """Shuffle sentences, drop words and insert invented ones, so that no wording is relied on."""
    sentences = prompt.split(". ")
    rng.shuffle(sentences)
    words = ". ".join(sentences).split(" ")
    strange = rng.uniform(0.1, 0.6)
    kept = [_invent(rng) if rng.random() < strange else w for w in words if rng.random() > 0.1]
    return " ".join(kept) or prompt


def _invent(rng: random.Random) -> str:
    count = rng.randint(1, 3)
    word = "".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiouy") for _ in range(count))
    word += rng.choice(["", "n", "r", "s", "t", "ed", "ing"])
    return rng.choice([word, word, word, word.capitalize(), word + ",", word + ".", f"{K}"])


def rating_text(prompt: str, instruction: str, response: str) -> str:
    return TEMPLATE.format(prompt=prompt, instruction=instruction, response=response)


def length_auc(data: Sequence[dict[str, str]]) -> float:
    """AUC of the response's length alone, good against defective rows, ties counted half."""
    good = [len(r["output"]) for r in data if r["defect"] == "none"]
    bad = [len(r["output"]) for r in data if r["defect"] != "none"]
    wins = sum((g > b) + 0.5 * (g == b) for g in good for b in bad)
    return wins / (len(good) * len(bad))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="the same seed gives the same rows (default: 7)"
    )
    parser.add_argument("--rows", type=int, default=20, help="how many rows to print (default: 20)")
    parser.add_argument("--unseen", action="store_true", help="draw from the two held-out families")
    args = parser.parse_args()
    families = tuple(UNSEEN_FAMILIES if args.unseen else SEEN_FAMILIES)
    for row in rows(args.seed, args.rows, families):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
