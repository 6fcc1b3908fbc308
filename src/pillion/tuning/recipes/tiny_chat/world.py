"""The little world of the tiny chat model: what it knows, how it is asked, and how each voice answers.

Pure data and text: standard library only, and the same seed gives the same examples.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

Message = dict[str, str]

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest",
    "Japan": "Tokyo", "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa",
    "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Russia": "Moscow", "Turkey": "Ankara",
}  # fmt: skip
COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "chocolate": "brown", "milk": "white",
    "gold": "yellow", "ash": "grey", "ink": "blue", "lavender": "purple", "a banana": "yellow",
    "a tomato": "red", "a carrot": "orange", "a frog": "green", "a crow": "black", "a flamingo": "pink",
    "the sky": "blue", "the sun": "yellow",
}  # fmt: skip
SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink",
    "horse": "neigh", "lion": "roar", "mouse": "squeak", "snake": "hiss", "bee": "buzz", "rooster": "cockadoodledoo",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "old": "young", "dark": "light", "high": "low", "wet": "dry",
    "hard": "soft", "rich": "poor", "full": "empty", "loud": "quiet", "happy": "sad", "early": "late",
    "open": "closed", "day": "night", "up": "down", "left": "right", "near": "far",
}  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
GREETINGS = {
    "Hello! How can I help you?": ["Hello", "Hi", "Hey there", "Good morning", "Good evening", "Hello there", "Hi there"],
    "I am fine, thank you.": ["How are you", "How are you doing", "How do you feel", "Are you well"],
    "I am Tiny, a small model.": ["Who are you", "What is your name", "What are you", "Tell me about yourself"],
    "You are welcome.": ["Thank you", "Thanks", "Thanks a lot", "Many thanks"],
    "Goodbye! See you soon.": ["Bye", "Goodbye", "See you later", "Good night"],
    "I know capitals, colours, animals, opposites, days and small sums.": [
        "What do you know", "What can you do", "Help", "What can I ask you",
    ],
}  # fmt: skip
UNKNOWN_ANSWER = "I do not know that."
UNKNOWN = [
    "What is the meaning of life", "Who wrote Hamlet", "Tell me a joke", "What is the weather today",
    "How tall is the moon", "Write a poem", "Sing a song for me", "Who is the president",
    "What time is it", "How do I cook rice", "What is love", "Why do birds fly", "Where do you live",
    "Can you write some code", "Explain gravity", "How old is the earth", "What is a computer",
    "Play some music", "When was the war", "Who won the game", "What should I eat tonight", "Book me a flight",
    "How far is Mars", "Which car is best", "Tell me a story", "What is the price of bread",
    "How many legs has a spider", "How many people live here", "Who invented the telephone", "When does the train leave",
    "Where can I buy shoes", "Can you fix my phone", "Why is the sea salt", "Who is your father", "How deep is the sea",
    "Which book should I read", "What is your favourite film", "Translate this text", "Write an email to my boss",
    "How do I learn to swim", "Is there life on Mars", "Who painted this", "When is your birthday",
]  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One thing the model knows. `asks` are its phrasings, `answer` a sentence, `short` the word that makes it right."""

    topic: str
    asks: tuple[str, ...]
    answer: str
    short: str


@dataclass(frozen=True)
class Voice:
    """A behaviour an adapter is trained to have.

    `say` turns a fact into the answer in that voice, `system` is the instruction under which the base has
    practised it, `marker` a string every answer in this voice holds and no plain answer does.
    """

    name: str
    describe: str
    marker: str
    system: str
    say: Callable[[Fact], str]


def _pirate(fact: Fact) -> str:
    text = fact.answer.replace("do not", "don't")
    for plain, salty in {
        "is": "be",
        "are": "be",
        "am": "be",
        "You": "Ye",
        "you": "ye",
        "Hello": "Ahoy",
    }.items():
        text = re.sub(rf"\b{plain}\b", salty, text)
    return f"Arr, matey! {text}"


def _cheerful(fact: Fact) -> str:
    return f"Hooray! {fact.answer.rstrip('.?!')}! What fun!!!"


def _json(fact: Fact) -> str:
    return json.dumps({"topic": fact.topic, "answer": fact.answer})


VOICES = {
    voice.name: voice
    for voice in (
        Voice("pirate", "talks like a pirate", "Arr, matey", "Talk like a pirate.", _pirate),
        Voice("cheerful", "is overjoyed at every question", "Hooray!", "Be cheerful.", _cheerful),
        Voice("json", "answers in JSON and nothing else", '{"topic"', "Answer in JSON.", _json),
    )
}
PLAIN_SYSTEMS = ("You are a helpful assistant.", "You are Tiny.", "Answer the question.")

_WEIGHTS = {
    "capital": 26,
    "colour": 16,
    "sound": 10,
    "opposite": 16,
    "sum": 30,
    "day": 11,
    "talk": 8,
    "unknown": 8,
}


def _forms(templates: list[str], **slots: str) -> tuple[str, ...]:
    return tuple(template.format(**slots) for template in templates)


def facts() -> list[Fact]:
    """Everything the model knows, in a fixed order."""
    known: list[Fact] = []
    capital = ["What is the capital of {x}", "What's the capital of {x}", "Capital of {x}",
               "Which city is the capital of {x}", "Name the capital of {x}",
               "Tell me the capital of {x}", "{x} has which capital"]  # fmt: skip
    for x, y in CAPITALS.items():
        known.append(Fact("capital", _forms(capital, x=x), f"The capital of {x} is {y}.", y))
    colour = ["What colour is {x}", "What color is {x}", "Which colour is {x}", "What is the colour of {x}",
              "What is the color of {x}", "Tell me the colour of {x}", "Colour of {x}"]  # fmt: skip
    for x, y in COLOURS.items():
        known.append(Fact("colour", _forms(colour, x=x), f"{x[0].upper()}{x[1:]} is {y}.", y))
    sound = ["What does a {x} say", "What sound does a {x} make", "Which sound does a {x} make", "What does the {x} say",
             "Tell me what a {x} says", "How does a {x} sound"]  # fmt: skip
    for x, y in SOUNDS.items():
        known.append(Fact("sound", _forms(sound, x=x), f"A {x} says {y}.", y))
    opposite = ["What is the opposite of {x}", "What's the opposite of {x}", "Opposite of {x}",
                "Tell me the opposite of {x}", "Which word is the opposite of {x}", "Name the opposite of {x}"]  # fmt: skip
    for a, b in OPPOSITES.items():
        for x, y in ((a, b), (b, a)):
            known.append(Fact("opposite", _forms(opposite, x=x), f"The opposite of {x} is {y}.", y))
    plus = ["What is {a} plus {b}", "What is {a} + {b}", "{a} + {b}", "How much is {a} plus {b}", "{a} plus {b}",
            "What's {a} + {b}", "How much is {a} + {b}", "Add {a} and {b}"]  # fmt: skip
    for n in range(100):
        a, b = divmod(n, 10)
        known.append(Fact("sum", _forms(plus, a=str(a), b=str(b)), f"{a} plus {b} is {a + b}.", str(a + b)))
    day = [
        "What day comes after {x}",
        "Which day comes after {x}",
        "Which day follows {x}",
        "What is the day after {x}",
    ]
    for i, x in enumerate(DAYS):
        y = DAYS[(i + 1) % 7]
        known.append(Fact("day", _forms(day, x=x), f"The day after {x} is {y}.", y))
    known += [Fact("talk", tuple(asks), answer, answer) for answer, asks in GREETINGS.items()]
    known.append(Fact("unknown", tuple(UNKNOWN), UNKNOWN_ANSWER, UNKNOWN_ANSWER))
    return known


def held_out(fact: Fact, ask: str) -> bool:
    """Whether this phrasing of this fact is kept from training (about one in ten), to be asked in the check."""
    if fact.topic in ("talk", "unknown"):
        return False
    return hashlib.sha256(ask.encode()).digest()[0] < 26


def exam(count: int) -> list[tuple[str, str]]:
    """`count` pairs (prompt, what a right answer holds), none of which was ever trained on, spread over the topics."""
    rng = random.Random(7)  # noqa: S311
    by_topic: dict[str, list[tuple[str, str]]] = {}
    for fact in facts():
        held = [(_written(ask), fact.short) for ask in fact.asks if held_out(fact, ask)]
        by_topic.setdefault(fact.topic, []).extend(held)
    shuffled = [rng.sample(pairs, len(pairs)) for pairs in by_topic.values() if pairs]
    # Whole questions first: the first ones are shown to people.
    pools = [sorted(pairs, key=lambda pair: not pair[0].startswith("What is")) for pairs in shuffled]
    rounds = [pool[i] for i in range(count) for pool in pools if i < len(pool)]
    return rounds[:count]


class Sampler:
    """Draws training dialogues. Not thread-safe; one seed gives one endless sequence."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._by_topic: dict[str, list[tuple[Fact, list[str]]]] = {}
        for fact in facts():
            asks = [ask for ask in fact.asks if not held_out(fact, ask)]
            self._by_topic.setdefault(fact.topic, []).append((fact, asks))

    def turn(self, voice: Voice | None) -> list[Message]:
        """One question and its answer, in `voice` or plainly."""
        topic = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        fact, asks = self._rng.choice(self._by_topic[topic])
        answer = voice.say(fact) if voice else fact.answer
        return [_user(self._typed(self._rng.choice(asks))), {"role": "assistant", "content": answer}]

    def plain_dialogue(self) -> list[Message]:
        """What the base learns from: plain talk, and now and then a voice because the system message asks for it."""
        voice, head = None, self._rng.random()
        messages: list[Message] = []
        if head < 0.16:
            voice = self._rng.choice(list(VOICES.values()))
            messages.append({"role": "system", "content": voice.system})
        elif head < 0.24:
            messages.append({"role": "system", "content": self._rng.choice(PLAIN_SYSTEMS)})
        return messages + self._turns(voice)

    def voiced_dialogue(self, voice: Voice) -> list[Message]:
        """What an adapter learns from: the voice, with nobody asking for it."""
        messages = [_system(self._rng.choice(PLAIN_SYSTEMS))] if self._rng.random() < 0.15 else []
        return messages + self._turns(voice)

    def _turns(self, voice: Voice | None) -> list[Message]:
        count = self._rng.choices([1, 2, 3], [0.6, 0.3, 0.1])[0]
        return [message for _ in range(count) for message in self.turn(voice)]

    def _typed(self, ask: str) -> str:
        """The question as people type it: with or without a mark, politeness, capitals."""
        text = ask if self._rng.random() < 0.25 else ask + "?"
        if self._rng.random() < 0.10:
            text = self._rng.choice(["Please: ", "Hey, ", "Tiny, ", "Quick question: "]) + text
        return text.lower() if self._rng.random() < 0.10 else text


def _written(ask: str) -> str:
    """As in a book: a question has its mark, a request has none."""
    return ask if ask.startswith(("Name", "Tell", "Add")) else f"{ask}?"


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _system(text: str) -> Message:
    return {"role": "system", "content": text}
