"""The small world of the embedded tasks: people, the kinds of things they buy, and what is known about them.

Train and test have different people, so that no fact of one split can occur in the other. Every other vocabulary has a
part that only the test split draws from, so some of its words and sentence frames are unseen in training. In training
there is only one frame for each statement, because a few hundred steps must be enough.
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
        "Robert", "Sarah", "Thomas", "Walter", "Albert", "Betty", "Charles", "Donna", "Edward", "Flora", "Gloria",
        "Harold", "Ivan", "Judy", "Keith", "Lisa", "Monica", "Norman", "Pamela", "Ralph", "Sandra", "Teresa", "Vincent",
        "William",
    ),
    "val": (
        "Adam", "Bella", "Chris", "Diana", "Eric", "Fiona", "Gavin", "Hannah", "Ian", "Jane", "Kyle", "Linda",
        "Michael", "Nina", "Paul", "Ruth", "Felix", "Tom", "Lucy", "Mark",
    ),
}  # fmt: skip
"""First names of one word each; none of them is another word of this world."""


@dataclass(frozen=True)
class Words:
    """Words, or sentence frames, that mean the same.

    Attributes:
        train: what both splits draw from.
        unseen: what only the test split draws from.
    """

    train: tuple[str, ...]
    unseen: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """Return what the split draws from."""
        return self.train if split == "train" else (*self.train, *self.unseen)


def nouns(train: str, unseen: str) -> Words:
    """Split two texts of words at their blanks."""
    return Words(tuple(train.split()), tuple(unseen.split()))


KINDS: Mapping[str, Words] = {
    "dog": nouns("poodle terrier beagle spaniel collie bulldog", "retriever hound greyhound"),
    "bird": nouns("parrot canary pigeon finch swan sparrow", "owl robin falcon"),
    "fish": nouns("trout carp salmon herring eel sardine", "cod tuna shark"),
    "fruit": nouns("apple banana pear plum cherry lemon", "peach mango grape"),
    "vegetable": nouns("carrot cabbage onion potato turnip beet", "leek parsnip radish"),
    "dessert": nouns("cake pudding pie cookie brownie pancake", "muffin tart waffle"),
    "flower": nouns("rose tulip lily daisy violet orchid", "lotus marigold poppy"),
    "tree": nouns("oak pine maple birch willow elm", "fir cedar spruce"),
    "boat": nouns("canoe ferry yacht kayak gondola barge", "dinghy sloop schooner"),
    "car": nouns("sedan taxi limousine jeep convertible coupe", "roadster minivan hatchback"),
    "tool": nouns("hammer saw drill wrench chisel screwdriver", "axe shovel rake"),
    "instrument": nouns("violin cello guitar harp flute trumpet", "piano clarinet banjo"),
    "garment": nouns("shirt coat skirt scarf sweater jacket", "blouse dress cardigan"),
    "seat": nouns("chair sofa bench stool couch throne", "armchair pew recliner"),
    "gem": nouns("ruby diamond emerald sapphire pearl opal", "amethyst topaz garnet"),
    "weapon": nouns("sword pistol rifle dagger spear cannon", "revolver musket lance"),
}
"""Kind -> things of this kind and of no other. All kinds have equally many, so that a kind does not give away its
thing."""


@dataclass(frozen=True)
class Attribute:
    """Something a person has exactly one of, so that another kind of it contradicts.

    Attributes:
        told: frames that state it, with ``{who}`` and ``{value}``; all have four words. They share no word except "a"
            with the ``subject`` and ``predicate`` of any attribute: neither the number of words nor shared words reveal
            whether two sentences are about the same attribute.
        subject: its name, with ``{who}``.
        predicate: what is said about its kind, with ``{kind}``.
        kinds: kind -> values of that kind; no value belongs to two kinds.
    """

    told: Words
    subject: str
    predicate: str
    kinds: Mapping[str, Words]


ATTRIBUTES: Mapping[str, Attribute] = {
    "plant": Attribute(
        Words(("{who} planted a {value}",), ("{who} grew a {value}",)),
        "the plant of {who}",
        "a {kind}",
        {
            "tree": nouns("pine maple birch willow", "cedar spruce"),
            "flower": nouns("rose tulip lily daisy violet", "lotus marigold poppy"),
            "vegetable": nouns("cabbage carrot potato turnip beet", "leek radish"),
        },
    ),
    "pet": Attribute(
        Words(("{who} keeps a {value}",), ("{who} adopted a {value}",)),
        "the pet of {who}",
        "a {kind}",
        {
            "dog": nouns("poodle terrier beagle spaniel", "retriever hound"),
            "bird": nouns("parrot canary pigeon finch", "robin falcon"),
            "fish": nouns("trout carp salmon herring", "cod shark"),
            "reptile": nouns("lizard turtle snake gecko", "cobra crocodile"),
        },
    ),
    "snack": Attribute(
        Words(("{who} ate a {value}",), ("{who} finished a {value}",)),
        "the snack of {who}",
        "a {kind}",
        {
            "fruit": nouns("banana pear plum cherry lemon", "peach mango grape"),
            "vegetable": nouns("carrot cabbage potato turnip beet", "leek parsnip radish"),
            "dessert": nouns("cake pudding pie cookie brownie", "muffin tart waffle"),
        },
    ),
    "vehicle": Attribute(
        Words(("{who} steered a {value}",), ("{who} hired a {value}",)),
        "the vehicle of {who}",
        "a {kind}",
        {
            "car": nouns("sedan taxi limousine jeep", "coupe minivan"),
            "boat": nouns("canoe ferry yacht kayak", "sloop schooner"),
            "plane": nouns("jet glider Spitfire Boeing", "Cessna Concorde"),
        },
    ),
}
"""What can be known about a person."""
