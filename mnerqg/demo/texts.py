"""The texts of the demo's world: sentences with slots, invented names to fill them, and the tags of both."""

import random
import re
from dataclasses import dataclass

HELD_OUT = 1 / 3  # share of the names never used in train.txt


def _words(text: str) -> list[str]:
    return text.split()


def _lines(text: str) -> list[str]:
    return text.splitlines()


FIRST_NAMES = _words("""
    Adele Amara Anton Bianca Bruno Camila Carlos Clara Dalia Daniel Delia Dorian Edgar Elena Elias Emma
    Esther Farid Felix Fiona Gloria Hannah Hugo Ines Ivan Jasper Joanna Jonas Kenji Laila Leo Lucia
    Magnus Marta Mateo Maya Milan Nadia Nolan Nora Olga Omar Oscar Petra Priya Quentin Rafael Rosa Ruben
    Samira Selma Simon Sofia Tariq Tessa Thomas Ursula Victor Wanda Yara Yusuf Zoe
""")
LAST_NAMES = _words("""
    Abbott Adeyemi Albright Alvarez Bachmann Bellamy Bergström Castellan Chowdhury Corrigan Dahl
    Delacroix Dunmore Eastwick Ekström Fairbanks Farouk Ferreira Galloway Grimaldi Haddad Hargrove
    Hollis Ivanov Jansen Kapoor Kowalski Lindqvist Lombardi Marchetti Mbeki McAllister Moreau Nakamura
    Novak Okafor Ortega Pemberton Petrov Quinlan Ramirez Rothwell Sandoval Schuster Sinclair Tanaka
    Thornton Ulrich Valdez Vandoren Vasquez Whitlock Yamamoto Zielinski
""")
PLACE_STEMS = _words("""
    Alder Ash Bel Birch Black Brook Cedar Clear Dun East Elm Fair Fern Glen Gold Grey Hart Hazel High
    Iron Kings Lake Lark Linden Long Maple Marl Mill North Oak Old Pine Port Raven Red River Rose Salt
    Silver South Stone Sun Thorn Vale West White Wind Winter
""")
PLACE_ENDS = _words("""
    burgh bury dale field ford gate ham haven mere minster mouth port stead ton ville wick worth
""")
PLACE_FRAMES = ["{}", "{}", "{}", "{}", "{} Bay", "Lake {}", "Mount {}", "{} Valley", "Port {}", "{} Islands"]
COMPANY_STEMS = _words("""
    Acrion Altavon Borealis Brightwell Calidex Corvus Delphi Durano Enterra Everline Falkon Fenwick
    Glintex Halcyon Helix Ionic Juniper Kestrel Kinetra Lumora Meridian Mondava Norvex Nuvola Orbiton
    Omnira Pallas Pinnacle Quantel Ravelin Sentra Solvane Stratus Talvex Trinova Umbrella Unicorp Vantor
    Veridian Wexford Xandria Zephyr Zentec
""")
COMPANY_FRAMES = [
    "{} Labs", "{} Motors", "{} Bank", "{} United", "{} FC", "{} Records",
    "{} Airlines", "{} Media", "{} University", "{} Group", "{} Foundation", "{} Energy",
    "{} News", "{} Institute", "The {} Party", "{} Inc",
]  # fmt: skip
PRODUCT_STEMS = _words("""
    Aero Astra Aurora Blaze Bolt Cobalt Comet Cosmo Dash Echo Ember Flux Galaxy Glide Halo Hyper Jet
    Karma Lyric Luna Mirage Nebula Nimbus Nova Onyx Opal Photon Pixel Pulse Quark Rocket Shadow Sky
    Sonic Spark Titan Turbo Vapor Velvet Volt
""")
PRODUCT_FRAMES = [
    "{} Phone 7", "{} Phone", "{}Book Pro", "{} Cup", "{} Trophy", "{} Championship",
    "{} Festival", "{}Pad 3", "{} Awards", "{} Soda", "{} Console", "{} X2",
    "{} Ball", "The {} Chronicles",
]  # fmt: skip

TEMPLATES = _lines("""\
so proud of {PER} tonight ! what a speech
RT @{user} : {PER} just arrived in {LOC} #{tag}
{PER} joins {ORG} as new director {url}
Great seeing {PER} and {PER} at the gala last night
Happy birthday {PER} ! Hope you have an amazing day :)
Can't believe {PER} said that on live TV smh
My interview with {PER} is now online : {url}
{PER} wins the {OTHER} for the second time !
just met {PER} outside the theatre , best day ever #{tag}
Thank you {PER} for everything you did for our kids
Breaking : {PER} leaves {ORG} after ten years {url}
Who else is watching {PER} right now ? #{tag}
Sunrise over {LOC} this morning . No filter needed
Snow is falling again in {LOC} #{tag}
Road trip to {LOC} with the girls this weekend !
We just landed in {LOC} and it is so hot here
Traffic is terrible in {LOC} today , avoid the bridge
Moving to {LOC} next month , any tips ? @{user}
The view from our hotel in {LOC} is unreal {url}
Beautiful evening in {LOC} . Goodnight from {LOC} #{tag}
Police are looking for witnesses in {LOC} {url}
From {LOC} with love #{tag}
{ORG} is hiring ! Apply before Friday : {url}
{ORG} announces record profits this quarter {url}
Big day for {ORG} fans ! 3 - 1 at home #{tag}
Shares of {ORG} fell 4 % after the report
New campus of {ORG} opens in {LOC}
Shame on you {ORG} , still waiting for my refund @{user}
Students at {ORG} protest against higher fees
According to {ORG} the vote will be very close
Just signed my contract with {ORG} ! So excited #{tag}
{ORG} unveils the new {OTHER} {url}
My {OTHER} arrived today and it is perfect
Anyone selling tickets for the {OTHER} ? DM me
Still in love with my {OTHER} #{tag}
Unboxing the {OTHER} : full review here {url}
The {OTHER} starts tomorrow , who is your favourite ?
Win a brand new {OTHER} ! RT and follow @{user}
Battery of the {OTHER} died after 2 hours , not impressed
Final of the {OTHER} will be held in {LOC}
{PER} unboxes the {OTHER} live from {LOC} #{tag}
""")
PLAIN_TEMPLATES = _lines("""\
I need coffee and about twelve hours of sleep
good morning everyone ! make it a great day #{tag}
RT @{user} : never give up on your dreams
why is it always raining on my day off
new blog post is up , go check it out {url}
Can't stop laughing at this picture {url}
Monday again ... who else is tired ? #{tag}
thank you all for 1000 followers ! love you @{user}
dinner was amazing tonight , I ate way too much
When you finally finish your homework at 3 am #{tag}
""")
TAGS = _words(
    "throwback monday live news win love mood travel photo weekend sports music breaking goals summer"
)
USERS = _words(
    "jules_88 the_real_kim newsdesk mandy_xo footyfan42 dailyphoto bigmike travelbug nina_w technerd"
)
EMOJI = ["😂", "❤️", "🔥", "👏🏽", "🇪🇺", "😍", "🎉"]
SLOT = re.compile(r"\{(\w+)\}")

Names = dict[str, list[str]]


@dataclass
class Draft:
    """A post before it is drawn: tokens with their tags, and the surfaces of its entities by type."""

    tokens: list[str]
    tags: list[str]
    surfaces: dict[str, list[str]]


def make_names(rng: random.Random) -> tuple[Names, Names]:
    """The names for train.txt, and those for all other posts: these and half as many more."""

    def mix(stems: list[str], frames: list[str]) -> list[str]:
        return [frame.format(stem) for stem in stems for frame in rng.sample(frames, 4)]

    places = [stem + end for stem in PLACE_STEMS for end in rng.sample(PLACE_ENDS, 2) if stem.lower() != end]
    people = [f"{first} {last}" for first in FIRST_NAMES for last in rng.sample(LAST_NAMES, 4)]
    everything = {
        "PER": people + FIRST_NAMES,
        "LOC": [rng.choice(PLACE_FRAMES).format(place) for place in places],
        "ORG": mix(COMPANY_STEMS, COMPANY_FRAMES),
        "OTHER": mix(PRODUCT_STEMS, PRODUCT_FRAMES),
    }
    training = {}
    for entity_type, names in everything.items():
        rng.shuffle(names)
        training[entity_type] = names[int(len(names) * HELD_OUT) :]
    return training, everything


def make_draft(rng: random.Random, names: Names) -> Draft:
    """A post from a template; one in eight names nothing. Some are in lower case, some bear emoji."""
    draft = Draft([], [], {})
    lower = rng.random() < 0.12
    for word in rng.choice(PLAIN_TEMPLATES if rng.random() < 0.125 else TEMPLATES).split():
        slot = SLOT.search(word)
        if slot is not None and slot[1] in names:
            surface = rng.choice(names[slot[1]])
            surface = surface.lower() if lower else surface
            draft.surfaces.setdefault(slot[1], []).append(surface)
            tokens = surface.split()
            draft.tags += [f"B-{slot[1]}", *[f"I-{slot[1]}"] * (len(tokens) - 1)]
        else:
            tokens = [_fill(rng, word)]
            draft.tags.append("O")
        draft.tokens += tokens
    if rng.random() < 0.15:
        draft.tokens.append(rng.choice(EMOJI))
        draft.tags.append("O")
    return draft


def _fill(rng: random.Random, word: str) -> str:
    code = "".join(rng.choices("abcdefghjkmnpqrstuvwxyzABCDEFGH23456789", k=10))
    word = word.replace("{tag}", rng.choice(TAGS)).replace("{user}", rng.choice(USERS))
    return word.replace("{url}", f"https://t.co/{code}")


def as_typed(tokens: list[str]) -> str:
    """The text as a person types it: no blank before punctuation."""
    return re.sub(r" ([!?.,:%])(?= |$)", r"\1", " ".join(tokens))
