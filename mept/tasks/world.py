"""The small world the embedded tasks speak of: people, what is known of them, and words with two senses.

Train and val have their own people and their own contexts, so that no sentence of one split can occur in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val"]

PEOPLE: Mapping[Split, tuple[str, ...]] = {
    "train": (
        "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Louis",
        "Maria", "Nathan", "Olivia", "Peter", "Rachel", "Simon", "Tina", "Victor", "Wendy", "Alice", "Brian", "Clara",
        "Daniel", "Ellen", "George", "Helen", "Isaac", "Julia", "Kevin", "Laura", "Martin", "Nora", "Oscar", "Paula",
        "Robert", "Sarah", "Thomas", "Walter",
    ),
    "val": (
        "Adam", "Bella", "Chris", "Diana", "Eric", "Fiona", "Gavin", "Hannah", "Ian", "Jane", "Kyle", "Linda",
        "Michael", "Nina", "Paul", "Rose",
    ),
}  # fmt: skip
"""First names of one word."""


@dataclass(frozen=True)
class Attribute:
    """Something a person has exactly one of, so that another kind of it contradicts.

    Attributes:
        told: ways to state it in a premise, with ``{who}`` and ``{value}``.
        asked: ways to state its kind in a hypothesis, with ``{who}`` and ``{kind}``.
        kinds: kind -> values of that kind; no value belongs to two kinds.
    """

    told: tuple[str, ...]
    asked: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]


ATTRIBUTES: Mapping[str, Attribute] = {
    "home": Attribute(
        told=("{who} lives in {value}", "the home of {who} is in {value}", "{who} has a flat in {value}"),
        asked=("{who} lives in {kind}", "the home of {who} is in {kind}"),
        kinds={
            "France": ("Paris", "Lyon", "Marseille"),
            "Italy": ("Rome", "Milan", "Venice"),
            "Japan": ("Tokyo", "Osaka", "Kyoto"),
            "Germany": ("Berlin", "Munich", "Hamburg"),
            "Spain": ("Madrid", "Barcelona", "Seville"),
        },
    ),
    "pet": Attribute(
        told=("the only pet of {who} is a {value}", "{who} has one pet, a {value}", "at home {who} keeps a {value}"),
        asked=("the pet of {who} is a {kind}", "{who} keeps a {kind} at home"),
        kinds={
            "dog": ("poodle", "terrier", "beagle", "spaniel"),
            "bird": ("parrot", "canary", "pigeon", "finch"),
            "fish": ("goldfish", "carp", "trout", "guppy"),
            "reptile": ("lizard", "turtle", "snake", "gecko"),
        },
    ),
    "food": Attribute(
        told=("{who} had {value} for lunch", "the lunch of {who} was just {value}", "for lunch {who} ate only {value}"),
        asked=("{who} had {kind} for lunch", "{who} ate {kind} for lunch"),
        kinds={
            "fruit": ("apples", "bananas", "grapes", "pears"),
            "meat": ("beef", "pork", "bacon", "sausages"),
            "vegetables": ("carrots", "spinach", "cabbage", "broccoli"),
            "sweets": ("chocolate", "candy", "cookies", "caramel"),
        },
    ),
    "work": Attribute(
        told=("{who} works as a {value}", "the job of {who} is that of a {value}", "{who} earns money as a {value}"),
        asked=("{who} works in a {kind}", "the place where {who} works is a {kind}"),
        kinds={
            "hospital": ("nurse", "surgeon", "midwife"),
            "school": ("teacher", "headmaster", "classroom assistant"),
            "restaurant": ("waiter", "chef", "dishwasher"),
            "theatre": ("playwright", "stage actor", "ballet dancer"),
        },
    ),
    "music": Attribute(
        told=("{who} plays the {value}", "the only instrument of {who} is the {value}", "{who} practises the {value}"),
        asked=("{who} plays {kind}", "the instrument of {who} is {kind}"),
        kinds={
            "a string instrument": ("violin", "cello", "guitar", "harp"),
            "a wind instrument": ("flute", "clarinet", "trumpet", "oboe"),
            "a percussion instrument": ("drums", "xylophone", "tambourine", "cymbals"),
        },
    ),
    "siblings": Attribute(
        told=("{who} has {value}", "{who} grew up with {value}", "{who} was raised together with {value}"),
        asked=("{who} has {kind}", "{who} grew up with {kind}"),
        kinds={
            "a single sibling": ("one brother", "one sister", "just one older brother", "just one younger sister"),
            "several siblings": ("four brothers", "five sisters", "three older brothers", "six younger sisters"),
        },
    ),
}
"""What can be known of a person."""


@dataclass(frozen=True)
class Sense:
    """One sense of a word: what follows a subject in sentences that show it."""

    train: tuple[str, ...]
    val: tuple[str, ...]


SENSES: Mapping[str, tuple[Sense, Sense]] = {
    "bank": (
        Sense(
            (
                "paid the money into the bank",
                "asked the bank for a loan",
                "opened an account at the bank",
                "took cash from the bank",
                "works as a clerk in the bank",
            ),
            (
                "owes the bank a large sum",
                "cashed a cheque at the bank",
                "has savings in the bank",
            ),
        ),
        Sense(
            (
                "sat on the bank of the river",
                "pulled the canoe up the muddy bank",
                "fished from the grassy bank",
                "planted willows along the bank of the stream",
                "watched the ducks from the bank",
            ),
            (
                "swam to the other bank",
                "slipped down the steep bank into the water",
                "camped on the bank beside the river",
            ),
        ),
    ),
    "bat": (
        Sense(
            (
                "saw a bat fly out of the cave",
                "found a bat sleeping upside down",
                "watched the bat hunt insects at night",
                "read that the bat is a flying mammal",
                "heard the wings of a bat in the attic",
            ),
            (
                "was afraid of the bat in the dark cave",
                "photographed a bat with its wings spread",
                "learned that a bat finds moths by sound",
            ),
        ),
        Sense(
            (
                "swung the bat and hit the ball",
                "bought a wooden bat for baseball",
                "dropped the bat and ran to first base",
                "carried a bat and a glove to the game",
                "broke the bat against a fast pitch",
            ),
            (
                "gripped the bat and waited for the ball",
                "hit a home run with the bat",
                "took a bat to cricket practice",
            ),
        ),
    ),
    "crane": (
        Sense(
            (
                "lifted the steel beams with a crane",
                "drove a crane at the building site",
                "repaired the cable of the crane",
                "unloaded the ship with a crane",
                "rented a crane to raise the roof",
            ),
            (
                "climbed into the cabin of the crane",
                "moved the concrete blocks with a crane",
                "used a crane to lift the containers",
            ),
        ),
        Sense(
            (
                "saw a crane standing in the marsh",
                "watched the crane feed its chicks",
                "painted a crane with white feathers",
                "heard the call of a crane over the lake",
                "counted every crane in the flock",
            ),
            (
                "followed the flight of a crane to its nest",
                "noticed a crane catching frogs in the wetland",
                "admired the long legs of the crane by the pond",
            ),
        ),
    ),
    "spring": (
        Sense(
            (
                "planted the seeds in spring",
                "loves the flowers of spring",
                "waits for spring after a long winter",
                "got married in the spring of that year",
                "cleans the whole house every spring",
            ),
            (
                "hears the birds return in spring",
                "prefers spring to autumn",
                "sees the cherry trees bloom each spring",
            ),
        ),
        Sense(
            (
                "replaced the broken spring in the mattress",
                "pressed the metal spring until it snapped back",
                "fitted a stronger spring to the car",
                "stretched the spring with a weight",
                "lost the spring of the pen",
            ),
            (
                "wound the spring of the clock",
                "bent the wire into a spring",
                "put a new spring into the door lock",
            ),
        ),
    ),
    "match": (
        Sense(
            (
                "won the tennis match",
                "watched the football match",
                "lost the match by two goals",
                "bought tickets for the match",
                "played the final match in the stadium",
            ),
            (
                "missed the second half of the match",
                "refereed the hockey match",
                "cheered for the home team during the match",
            ),
        ),
        Sense(
            (
                "lit the candle with a match",
                "struck a match in the dark",
                "burned a finger on the match",
                "took the last match from the box",
                "held a match to the dry wood",
            ),
            (
                "blew out the match",
                "started the fire with a single match",
                "used a match to light the stove",
            ),
        ),
    ),
    "mouse": (
        Sense(
            (
                "caught a mouse in the kitchen",
                "saw the cat chase a mouse",
                "set a trap for the mouse",
                "fed cheese to the mouse",
                "found the nest of a mouse in the barn",
            ),
            (
                "heard a mouse squeak behind the wall",
                "freed the little mouse in the field",
                "screamed at the grey mouse",
            ),
        ),
        Sense(
            (
                "clicked the button of the mouse",
                "connected the mouse to the computer",
                "moved the cursor with the mouse",
                "bought a wireless mouse and a keyboard",
                "changed the battery of the mouse",
            ),
            (
                "plugged the mouse into the laptop",
                "scrolled the page with the mouse",
                "dragged the file with the mouse",
            ),
        ),
    ),
    "plant": (
        Sense(
            (
                "watered the plant every day",
                "put the plant in a bigger pot",
                "grew the plant from a seed",
                "cut the dry leaves off the plant",
                "keeps a green plant on the windowsill",
            ),
            (
                "gave the plant more sunlight",
                "pulled the plant out by its roots",
                "admired the blossom of the plant",
            ),
        ),
        Sense(
            (
                "works on the assembly line of the plant",
                "manages a chemical plant",
                "closed the plant and fired the workers",
                "toured the car plant",
                "invested in a new steel plant",
            ),
            (
                "inspected the machines of the plant",
                "lost a job when the plant shut down",
                "built a plant that makes engines",
            ),
        ),
    ),
    "seal": (
        Sense(
            (
                "watched a seal dive under the ice",
                "fed fish to the seal",
                "saw a seal resting on the rocks",
                "heard a seal bark on the beach",
                "rescued a baby seal from a net",
            ),
            (
                "followed the seal through the cold sea",
                "spotted a seal among the waves",
                "photographed the seal and its pup",
            ),
        ),
        Sense(
            (
                "broke the wax seal on the envelope",
                "stamped the document with a seal",
                "pressed the royal seal into the wax",
                "checked the official seal on the contract",
                "kept the seal of the city in a safe",
            ),
            (
                "put a seal on the decree",
                "recognised the seal of the king on the letter",
                "forged the seal of the notary",
            ),
        ),
    ),
    "trunk": (
        Sense(
            (
                "stroked the trunk of the elephant",
                "saw an elephant lift a log with its trunk",
                "watched the elephant drink with its trunk",
                "drew an elephant with a long trunk",
                "was touched by the trunk of a baby elephant",
            ),
            (
                "was sprayed with water from the trunk of an elephant",
                "fed peanuts into the trunk of the elephant",
                "saw the elephant swing its trunk",
            ),
        ),
        Sense(
            (
                "put the suitcase in the trunk of the car",
                "opened the trunk to get the spare tyre",
                "loaded the groceries into the trunk",
                "slammed the trunk of the taxi",
                "hid a box in the trunk of the sedan",
            ),
            (
                "packed the luggage into the trunk",
                "locked the trunk and drove off",
                "cleaned the trunk and the seats of the car",
            ),
        ),
    ),
    "pitcher": (
        Sense(
            (
                "filled the pitcher with lemonade",
                "poured milk from the pitcher",
                "set a pitcher of water on the table",
                "dropped the glass pitcher",
                "washed the pitcher and the cups",
            ),
            (
                "served iced tea in a pitcher",
                "emptied the pitcher into the glasses",
                "bought a clay pitcher with a handle",
            ),
        ),
        Sense(
            (
                "saw the pitcher throw a fast ball",
                "praised the pitcher of the baseball team",
                "replaced the pitcher in the last inning",
                "became a pitcher in the major league",
                "struck out against the pitcher",
            ),
            (
                "hit a home run off the pitcher",
                "coached the young pitcher of the team",
                "cheered when the pitcher won the game",
            ),
        ),
    ),
}
"""Words with two senses and sentences' ends that show each."""
