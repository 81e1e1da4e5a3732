"""Words with two senses, for the embedded WiC."""

from __future__ import annotations

from collections.abc import Mapping

from mept.tasks.world import Words, nouns

SENSES: Mapping[str, tuple[Words, Words]] = {
    "bat": (
        nouns("rat squirrel rabbit fox deer", "badger hamster"),
        nouns("ball glove racket helmet net", "puck skate"),
    ),
    "crane": (
        nouns("heron stork swan goose duck", "pelican flamingo"),
        nouns("truck tractor bulldozer lorry digger", "forklift van"),
    ),
    "mouse": (
        nouns("rat squirrel rabbit hamster cat", "hedgehog ferret"),
        nouns("keyboard monitor laptop printer screen", "tablet modem"),
    ),
    "seal": (
        nouns("whale dolphin walrus shark penguin", "otter crab"),
        nouns("stamp signature envelope letter document", "contract postcard"),
    ),
    "organ": (
        nouns("heart liver kidney lung stomach", "brain bladder"),
        nouns("piano flute violin trumpet harp", "guitar cello"),
    ),
    "palm": (nouns("oak pine willow maple birch", "elm cedar"), nouns("finger thumb wrist elbow arm", "toe shoulder")),
    "date": (nouns("fig plum cherry grape apple", "peach mango"), nouns("week month year day hour", "minute century")),
    "jaguar": (
        nouns("lion tiger leopard cheetah panther", "cougar lynx"),
        nouns("sedan taxi limousine truck van", "jeep coupe"),
    ),
    "nail": (
        nouns("hammer screw bolt saw drill", "wrench chisel"),
        nouns("finger toe thumb hand skin", "hair knuckle"),
    ),
    "chest": (
        nouns("shoulder stomach neck hip knee", "elbow belly"),
        nouns("box basket crate barrel bag", "suitcase drawer"),
    ),
    "bank": (
        nouns("river stream lake canal creek", "pond brook"),
        nouns("hotel school hospital shop office", "museum theatre"),
    ),
    "plant": (
        nouns("flower tree bush grass moss", "fern shrub"),
        nouns("factory mill mine refinery workshop", "brewery sawmill"),
    ),
    "trunk": (
        nouns("suitcase bag box basket crate", "chest barrel"),
        nouns("branch leaf root twig bark", "stem blossom"),
    ),
    "pen": (
        nouns("pencil brush chalk crayon marker", "ruler ink"),
        nouns("stable barn cage kennel shed", "fence coop"),
    ),
    "bass": (
        nouns("trout carp salmon herring tuna", "cod eel"),
        nouns("guitar cello drum piano violin", "banjo trumpet"),
    ),
    "spring": (
        nouns("summer autumn winter season month", "weekend year"),
        nouns("screw bolt wire hinge nut", "lever gear"),
    ),
}
"""Word -> for each of its senses, things of the same kind; no thing fits both senses."""

UNSEEN_SENSES: Mapping[str, tuple[Words, Words]] = {
    "mole": (
        nouns("rat badger rabbit hedgehog fox", "weasel otter"),
        nouns("scar wart freckle wrinkle rash", "blister bruise"),
    ),
    "bow": (
        nouns("arrow sword spear dagger rifle", "lance pistol"),
        nouns("ribbon knot scarf lace button", "belt tie"),
    ),
    "tank": (
        nouns("cannon rifle missile bomber gun", "pistol mortar"),
        nouns("bucket barrel bottle jar bowl", "jug vase"),
    ),
}
"""The same, for words that only the test split uses."""
