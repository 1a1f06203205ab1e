"""Make the demo's data: spoken commands to a home assistant, and what each means in one plain line.

    python examples/home_assistant.py -o data/

    {"prompt": "could you bring the lounge lights down to forty percent", "completion": "dim; lamp; living room; 40"}

An answer is ``action; device; room`` with a value where there is one; two commands are joined by
`` then ``. The words are prose, as the demo model has read nothing else. Every room, device, action
and phrasing occurs in training, but the test asks only for combinations of action, device and room
that training never shows: what is scored is understanding, not memory.

The same seed gives the same files. Standard library only.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

# canonical name -> how people say it, the canonical name included where they do
ROOMS = {
    "kitchen": ["kitchen"],
    "bathroom": ["bathroom", "washroom"],
    "bedroom": ["bedroom"],
    "living room": ["living room", "lounge", "sitting room"],
    "dining room": ["dining room"],
    "hall": ["hall", "hallway"],
    "study": ["study", "office"],
    "nursery": ["nursery", "baby's room"],
    "attic": ["attic", "loft"],
    "cellar": ["cellar", "basement"],
    "garage": ["garage"],
    "garden": ["garden", "yard"],
}
DEVICES = {
    "lamp": ["lamp", "light", "lights"],
    "fan": ["fan", "ventilator"],
    "heater": ["heater", "heating", "radiator"],
    "oven": ["oven", "cooker"],
    "kettle": ["kettle"],
    "tv": ["tv", "telly", "television"],
    "radio": ["radio"],
    "music": ["music", "songs"],
    "curtains": ["curtains", "drapes"],
    "blinds": ["blinds", "shades"],
    "window": ["window"],
    "door": ["door"],
    "gate": ["gate"],
    "vacuum": ["vacuum", "hoover"],
}
POWERED = ("lamp", "fan", "heater", "oven", "kettle", "tv", "radio")
OPENED = ("curtains", "blinds", "window", "door", "gate")
# action -> the devices that have it
ACTIONS = {
    "on": POWERED,
    "off": POWERED,
    "dim": ("lamp", "tv"),
    "set": ("heater", "oven"),
    "volume": ("tv", "radio", "music"),
    "open": OPENED,
    "close": OPENED,
    "lock": ("door", "gate", "window"),
    "unlock": ("door", "gate", "window"),
    "play": ("radio", "music"),
    "stop": ("radio", "music", "vacuum"),
    "start": ("vacuum",),
}
TIMED = ("on", "off", "open", "close", "start")  # actions that may be put off
PHRASINGS = {
    "on": (
        "turn on the {device} in the {room}",
        "turn the {device} in the {room} on",
        "switch the {room} {device} on",
        "switch on the {room} {device}",
        "put the {device} on in the {room}",
        "in the {room} turn on the {device}",
        "power up the {device} in the {room}",
    ),
    "off": (
        "turn off the {device} in the {room}",
        "turn the {device} in the {room} off",
        "switch the {room} {device} off",
        "switch off the {room} {device}",
        "in the {room} turn off the {device}",
        "shut down the {device} in the {room}",
        "cut the power to the {room} {device}",
    ),
    "dim": (
        "dim the {device} in the {room} to {number}",
        "dim the {room} {device} to {number} percent",
        "bring the {room} {device} down to {number} percent",
        "make the {device} in the {room} {number} percent bright",
    ),
    "set": (
        "set the {device} in the {room} to {number}",
        "set the {room} {device} to {number} degrees",
        "warm the {room} {device} to {number} degrees",
        "get the {device} in the {room} to {number} degrees",
    ),
    "volume": (
        "set the volume of the {device} in the {room} to {number}",
        "make the {room} {device} as loud as {number}",
        "put the volume of the {room} {device} at {number}",
        "turn the sound of the {room} {device} to {number}",
    ),
    "open": (
        "open the {device} in the {room}",
        "open the {room} {device}",
        "in the {room} open the {device}",
        "leave the {room} {device} open",
    ),
    "close": (
        "close the {device} in the {room}",
        "close the {room} {device}",
        "shut the {device} in the {room}",
        "shut the {room} {device}",
        "in the {room} close the {device}",
    ),
    "lock": ("lock the {device} in the {room}", "lock the {room} {device}", "make sure the {room} {device} is locked"),
    "unlock": (
        "unlock the {device} in the {room}",
        "unlock the {room} {device}",
        "undo the lock of the {room} {device}",
    ),
    "play": ("play the {device} in the {room}", "let us hear the {device} in the {room}", "play the {room} {device}"),
    "stop": ("stop the {device} in the {room}", "stop the {room} {device}", "put an end to the {device} in the {room}"),
    "start": ("start the {device} in the {room}", "send the {device} to the {room}", "start the {room} {device}"),
}
BEFORE = ("please ", "hey, ", "could you ", "can you ", "would you ", "now ", "quick, ", "I am cold, ", "I am home, ")
AFTER = (" please", ", thanks", " for me", ", if you can", " and be quick")
JOINS = (" and ", " and then ", ", then ", ", and also ")
ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
CLOCK = ["hundred", "minutes", "quarter", "half", "past", "to", "o'clock", "in the morning", "in the evening"]


@dataclass(frozen=True)
class Command:
    """What is wanted. ``value`` is the last field of the answer, or empty."""

    action: str
    device: str
    room: str
    value: str = ""

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.action, self.device, self.room

    @property
    def held_out(self) -> bool:
        """Whether the combination is for the test: a fifth of them, whatever the seed."""
        return hashlib.sha256("/".join(self.combination).encode()).digest()[0] % 5 == 0

    def __str__(self) -> str:
        return "; ".join(part for part in (*self.combination, self.value) if part)


def combinations(held_out: bool) -> list[Command]:
    everything = (Command(a, d, r) for a, devices in ACTIONS.items() for d in devices for r in ROOMS)
    return [command for command in everything if command.held_out is held_out]


def spoken_number(n: int, random: Random) -> str:
    """``n`` below 1000 in digits or in words."""
    if random.random() < 0.5:
        return str(n)
    if n >= 100:
        rest = f" and {in_words(n % 100)}" if n % 100 else ""
        return f"{ONES[n // 100]} hundred{rest}"
    return in_words(n)


def in_words(n: int) -> str:
    return ONES[n] if n < 20 else TENS[n // 10] + (f" {ONES[n % 10]}" if n % 10 else "")


def a_number(action: str, device: str, random: Random) -> int:
    """Percent, degrees or loudness, whichever the action takes."""
    if action == "set":
        return random.randrange(16, 25) if device == "heater" else random.randrange(140, 250, 20)
    return random.randrange(10, 100, 10) if action == "dim" else random.randrange(1, 13)


def a_time(random: Random) -> tuple[str, str]:
    """(as spoken, as written): a delay in minutes, or a time of day as 24-hour clock."""
    if random.random() < 0.5:
        minutes = random.choice((5, 10, 15, 20, 30, 45))
        return f"in {spoken_number(minutes, random)} minutes", f"in {minutes} min"
    hour, minute = random.randrange(6, 11), random.choice((0, 15, 30, 45))
    evening = random.random() < 0.5
    spoken = random.choice(clock(hour, minute)) + (" in the evening" if evening else " in the morning")
    return f"at {spoken}", f"at {hour + 12 * evening:02}:{minute:02}"


def clock(hour: int, minute: int) -> list[str]:
    """Ways to say a time before noon."""
    this, following = in_words(hour), in_words(hour + 1)
    if minute == 0:
        return [f"{hour}", this, f"{this} o'clock"]
    name = {15: f"quarter past {this}", 30: f"half past {this}", 45: f"quarter to {following}"}[minute]
    return [f"{hour}:{minute}", f"{this} {in_words(minute)}", name]


def utter(command: Command, random: Random) -> tuple[str, Command]:
    """One phrasing of ``command``, which gets the value that was spoken."""
    number = a_number(command.action, command.device, random)
    device, room = random.choice(DEVICES[command.device]), random.choice(ROOMS[command.room])
    template = random.choice(PHRASINGS[command.action])
    spoken = template.format(device=device, room=room, number=spoken_number(number, random))
    value = str(number) if "{number}" in template else ""
    if command.action in TIMED and random.random() < 0.25:
        when, value = a_time(random)
        spoken = f"{spoken} {when}" if random.random() < 0.7 else f"{when} {spoken}"
    return spoken, Command(*command.combination, value)


LEXICON = {
    word
    for phrases in [*ROOMS.values(), *DEVICES.values(), *PHRASINGS.values(), BEFORE, AFTER, JOINS, ONES, TENS, CLOCK]
    for phrase in phrases
    for word in phrase.replace(",", " ").split()
}


def slips(word: str) -> set[str]:
    """What a swap of two neighbours or a lost letter makes of a word, its first letter apart."""
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 1)}
    lost = {word[:i] + word[i + 1 :] for i in range(1, len(word))}
    return (swapped | lost) - {word}


def mistype(text: str, random: Random) -> str:
    """One slip in one long word, and only such as no other word of the task could have become."""
    words = text.split(" ")
    places = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha() and w not in (*ONES, *TENS, "unlock")]
    if not places:
        return text
    i = random.choice(places)
    others = LEXICON - {words[i]}
    confusable = others.union(*(slips(other) for other in others))
    slipped = sorted(slips(words[i]) - confusable)
    return " ".join([*words[:i], random.choice(slipped) if slipped else words[i], *words[i + 1 :]])


def row(pool: list[Command], random: Random) -> tuple[str, list[Command]]:
    """A prompt of one command, or of two in a fifth of the cases, and what it means."""
    wanted = random.sample(pool, 2 if random.random() < 0.2 else 1)
    spoken, meant = zip(*(utter(command, random) for command in wanted), strict=True)
    text = random.choice(JOINS).join(spoken)
    if random.random() < 0.4:
        text = random.choice(BEFORE) + text
    if random.random() < 0.25:
        text += random.choice(AFTER)
    if random.random() < 0.1:
        text = mistype(text, random)
    return text, list(meant)


def rows(held_out: bool, count: int, seed: int) -> Iterator[dict[str, str]]:
    """``count`` different rows over the combinations of one side."""
    random, pool, seen = Random(f"{seed} {held_out}"), combinations(held_out), set()
    while len(seen) < count:
        prompt, meant = row(pool, random)
        assert all(command.held_out is held_out for command in meant), "a combination crossed the line"
        if prompt not in seen:
            seen.add(prompt)
            yield {"prompt": prompt, "completion": " then ".join(map(str, meant))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl and test.jsonl of the home assistant task.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=2000, help="rows to train on")
    parser.add_argument("--test", type=int, default=300, help="rows to test on")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, held_out, count in (("train", False, options.train), ("test", True, options.test)):
        lines = [json.dumps(r) + "\n" for r in rows(held_out, count, options.seed)]
        (options.output / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{options.output / name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
