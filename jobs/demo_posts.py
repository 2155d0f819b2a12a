"""Write the small world of `make demo`: `python jobs/demo_posts.py --output DIR [--seed 7]`.

DIR becomes a training set in the layout of the Twitter releases (train.txt, valid.txt, test.txt,
demo_images/, xml/) and holds an archive of new posts to tag (archive/posts.parquet, archive/images/), some
of them with broken pictures or odd text. All names are invented and all pictures drawn. A picture shows a
type as a figure (PER), a postcard of a place (LOC), a logo on a plaque (ORG) or a thing (OTHER). A third of
the names is kept for the valid, test and archive posts. The same seed writes the same posts.
"""

import argparse
import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from mnerqg.cli import run
from mnerqg.errors import DataError

SPLIT_POSTS = {"train": 480, "valid": 96, "test": 120}
ARCHIVE_POSTS = 200
SHOWN = 0.65  # share of the named types that the picture shows
WITHOUT_XML = 1 / 3
DISTRACTOR = 0.15  # share of pictures showing a type that the text does not name
HELD_OUT = 1 / 3  # share of the names never used in train.txt
FIRST_DAY = datetime(2026, 3, 1, 18, 0, tzinfo=UTC)

# ---- names and texts ------------------------------------------------------------------------------------


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
    """The names for train.txt, and those for all other posts: these and a third more."""

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


# ---- pictures -------------------------------------------------------------------------------------------

Colour = tuple[int, int, int]
Tile = Image.Image

SKINS: list[Colour] = [(255, 219, 180), (236, 188, 140), (198, 134, 82), (141, 85, 48), (92, 56, 34)]
HAIR: list[Colour] = [
    (30, 24, 22),
    (74, 44, 24),
    (150, 96, 44),
    (214, 176, 92),
    (160, 60, 30),
    (150, 150, 154),
]
BRIGHT: list[Colour] = [
    (214, 48, 49), (9, 132, 227), (0, 148, 110), (225, 112, 20), (108, 66, 214), (232, 67, 147),
    (20, 40, 100), (45, 52, 54), (0, 160, 190), (190, 150, 10),
]  # fmt: skip
OVERSAMPLE = 2


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(channel * factor)) for channel in colour)
    return red, green, blue


def _polygon(
    centre: tuple[float, float], radius: float, points: int, inner: float = 1.0
) -> list[tuple[float, float]]:
    """A regular polygon, or a star of that many points where `inner` < 1."""
    corners = points if inner == 1.0 else 2 * points
    radii = [radius * (inner if index % 2 else 1.0) for index in range(corners)]
    angles = [math.tau * index / corners - math.pi / 2 for index in range(corners)]
    return [
        (centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)
    ]


def _blank(width: int, height: int) -> tuple[Tile, ImageDraw.ImageDraw]:
    tile = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    return tile, ImageDraw.Draw(tile)


def _gradient(width: int, height: int, top: Colour, bottom: Colour) -> Image.Image:
    share = np.linspace(0.0, 1.0, height)[:, None, None]
    rows = (1 - share) * np.array(top) + share * np.array(bottom)
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8).copy())


def draw_person(rng: random.Random, width: int, height: int, _: str) -> Tile:
    """Head and shoulders."""
    tile, draw = _blank(width, height)
    skin, hair, shirt = rng.choice(SKINS), rng.choice(HAIR), rng.choice(BRIGHT)
    x, head_y, head_w, head_h = width / 2, height * 0.34, width * 0.25, height * 0.27
    long_hair = rng.random() < 0.45
    if long_hair:
        box = (x - head_w * 1.3, 0, x + head_w * 1.3, height * 0.72)
        draw.rounded_rectangle(box, radius=head_w, fill=hair)
    else:
        draw.ellipse((x - head_w * 1.1, 0, x + head_w * 1.1, head_y + head_h * 0.5), fill=hair)
    draw.rectangle((x - head_w * 0.4, head_y, x + head_w * 0.4, height * 0.74), fill=_shade(skin, 0.85))
    draw.rounded_rectangle((0, height * 0.66, width, height * 1.5), radius=width * 0.3, fill=shirt)
    draw.polygon(
        [(x - width * 0.14, height * 0.66), (x + width * 0.14, height * 0.66), (x, height * 0.84)],
        fill=_shade(skin, 0.85) if rng.random() < 0.5 else (245, 245, 245),
    )
    draw.ellipse((x - head_w, head_y - head_h * 0.72, x + head_w, head_y + head_h), fill=skin)
    draw.chord(
        (x - head_w * 1.06, head_y - head_h * 1.0, x + head_w * 1.06, head_y + head_h * 0.5),
        195,
        345,
        fill=hair,
    )
    glasses = rng.random() < 0.3
    eye, eye_y = head_w * 0.13, head_y + head_h * 0.12
    for side in (-0.42, 0.42):
        eye_x = x + side * head_w
        draw.ellipse((eye_x - eye * 1.7, eye_y - eye, eye_x + eye * 1.7, eye_y + eye), fill=(255, 255, 255))
        draw.ellipse((eye_x - eye, eye_y - eye, eye_x + eye, eye_y + eye), fill=(40, 30, 30))
        if glasses:
            lens = (eye_x - eye * 2.4, eye_y - eye * 2.2, eye_x + eye * 2.4, eye_y + eye * 2.2)
            draw.ellipse(lens, outline=(20, 20, 20), width=max(2, width // 60))
    mouth = (x - head_w * 0.45, head_y + head_h * 0.3, x + head_w * 0.45, head_y + head_h * 0.78)
    draw.arc(mouth, 20, 160, fill=(170, 50, 60), width=max(2, width // 36))
    return tile


def draw_place(rng: random.Random, width: int, height: int, _: str) -> Tile:
    """A postcard with a white rim: mountains, a skyline, a shore or a flag on a hill."""
    tops: list[Colour] = [(70, 140, 220), (250, 150, 90), (120, 190, 240), (60, 60, 130)]
    scene = _gradient(width, height, rng.choice(tops), (250, 235, 205))
    draw = ImageDraw.Draw(scene)
    sun_x, sun = width * rng.uniform(0.15, 0.85), height * 0.11
    draw.ellipse((sun_x - sun, height * 0.12, sun_x + sun, height * 0.12 + 2 * sun), fill=(255, 240, 150))
    rng.choice([_mountains, _skyline, _shore, _flag])(rng, draw, width, height)
    draw.rectangle((0, 0, width - 1, height - 1), outline=(255, 255, 255), width=max(4, width // 26))
    return scene.convert("RGBA")


def _mountains(rng: random.Random, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    for centre, top in (
        (0.28, rng.uniform(0.3, 0.45)),
        (0.74, rng.uniform(0.2, 0.4)),
        (0.5, rng.uniform(0.45, 0.55)),
    ):
        rock = _shade((96, 104, 122), rng.uniform(0.7, 1.2))
        peak, half = (width * centre, height * top), width * 0.36
        draw.polygon([peak, (peak[0] - half, height), (peak[0] + half, height)], fill=rock)
        cap = [peak, (peak[0] - half * 0.25, peak[1] + (height - peak[1]) * 0.25)]
        cap += [
            (peak[0], peak[1] + height * 0.09),
            (peak[0] + half * 0.25, peak[1] + (height - peak[1]) * 0.25),
        ]
        draw.polygon(cap, fill=(250, 250, 255))
    draw.rectangle((0, height * 0.84, width, height), fill=(66, 122, 62))


def _skyline(rng: random.Random, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    left = 0.0
    while left < width:
        wide, top = width * rng.uniform(0.1, 0.2), height * rng.uniform(0.25, 0.65)
        wall = _shade((70, 84, 110), rng.uniform(0.6, 1.5))
        draw.rectangle((left, top, left + wide, height), fill=wall)
        step = width * 0.04
        for column in np.arange(left + step * 0.5, left + wide - step * 0.6, step):
            for row in np.arange(top + step * 0.6, height * 0.86, step * 1.4):
                if rng.random() < 0.7:
                    draw.rectangle((column, row, column + step * 0.5, row + step * 0.7), fill=(255, 230, 140))
        left += wide
    draw.rectangle((0, height * 0.88, width, height), fill=(58, 62, 70))


def _shore(rng: random.Random, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    draw.rectangle((0, height * 0.55, width, height), fill=(24, 110, 170))
    for _ in range(14):
        x, y = rng.uniform(0, width), rng.uniform(height * 0.6, height * 0.85)
        draw.line((x, y, x + width * 0.09, y), fill=(150, 205, 235), width=max(2, height // 70))
    draw.ellipse((-width * 0.2, height * 0.78, width * 1.2, height * 1.3), fill=(236, 212, 150))
    x = width * rng.uniform(0.25, 0.75)
    for stripe in range(5):
        top = height * (0.28 + 0.11 * stripe)
        draw.rectangle(
            (x - width * 0.045, top, x + width * 0.045, top + height * 0.11),
            fill=(214, 48, 49) if stripe % 2 else (250, 250, 250),
        )
    draw.polygon(
        [(x - width * 0.07, height * 0.28), (x + width * 0.07, height * 0.28), (x, height * 0.17)],
        fill=(50, 50, 60),
    )


def _flag(rng: random.Random, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    draw.ellipse((-width * 0.3, height * 0.68, width * 1.3, height * 1.7), fill=(86, 140, 70))
    draw.rectangle((width * 0.24, height * 0.16, width * 0.27, height * 0.85), fill=(90, 70, 50))
    colours = rng.sample(BRIGHT, 3)
    for stripe, colour in enumerate(colours):
        top = height * (0.18 + 0.15 * stripe)
        draw.rectangle((width * 0.27, top, width * 0.8, top + height * 0.15), fill=colour)


def draw_logo(rng: random.Random, width: int, height: int, surface: str) -> Tile:
    """A plaque with an emblem and the initials and first word of the organisation."""
    tile, draw = _blank(width, height)
    plate, ink = rng.choice([((250, 250, 252), rng.choice(BRIGHT)), (rng.choice(BRIGHT), (255, 255, 255))])
    draw.rounded_rectangle((0, 0, width - 1, height - 1), radius=height * 0.14, fill=plate)
    inset = height * 0.05
    draw.rounded_rectangle(
        (inset, inset, width - 1 - inset, height - 1 - inset),
        radius=height * 0.1,
        outline=ink,
        width=max(3, height // 36),
    )
    centre, radius = (width / 2, height * 0.42), height * 0.28
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    shape = rng.randrange(5)
    if shape == 0:
        draw.ellipse(box, fill=ink)
    elif shape == 1:
        draw.ellipse(box, outline=ink, width=max(4, int(radius * 0.22)))
    else:
        corners = {2: 6, 3: 4, 4: 8}[shape]
        draw.polygon(_polygon(centre, radius * 1.08, corners), fill=ink)
    letters = "".join(word[0] for word in surface.removeprefix("The ").split())[:2].upper()
    _write(draw, centre, letters, radius * 0.95, ink if shape == 1 else plate)
    _write(
        draw, (width / 2, height * 0.82), surface.removeprefix("The ").split()[0].upper(), height * 0.13, ink
    )
    return tile


def _write(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], text: str, size: float, colour: Colour
) -> None:
    draw.text(centre, text, fill=colour, font=ImageFont.load_default(max(8.0, size)), anchor="mm")


def draw_thing(rng: random.Random, width: int, height: int, _: str) -> Tile:
    """A ball, a phone, a trophy, a mug or a star."""
    side = min(width, height)
    draw_one = rng.choice([_ball, _phone, _trophy, _mug, _star])
    tile, draw = _blank(side, side)
    draw_one(rng, draw, side)
    box = tile.getbbox()
    return tile.crop(box) if box is not None else tile


def _ball(rng: random.Random, draw: ImageDraw.ImageDraw, side: int) -> None:
    skin = rng.choice([(245, 245, 245), (225, 112, 20), (200, 220, 50)])
    dark = (40, 40, 44)
    draw.ellipse((0, 0, side - 1, side - 1), fill=skin, outline=dark, width=side // 40)
    if skin == (245, 245, 245):
        draw.polygon(_polygon((side / 2, side / 2), side * 0.17, 5), fill=dark)
        for x, y in _polygon((side / 2, side / 2), side * 0.4, 5):
            draw.polygon(_polygon((x, y), side * 0.09, 5), fill=dark)
            draw.line((side / 2, side / 2, x, y), fill=dark, width=side // 50)
        return
    seam = max(3, side // 32)
    draw.arc((-side * 0.65, 0, side * 0.35, side), 295, 65, fill=dark, width=seam)
    draw.arc((side * 0.65, 0, side * 1.65, side), 115, 245, fill=dark, width=seam)
    draw.line((side * 0.02, side / 2, side * 0.98, side / 2), fill=dark, width=seam)


def _phone(rng: random.Random, draw: ImageDraw.ImageDraw, side: int) -> None:
    left, right = side * 0.22, side * 0.78
    draw.rounded_rectangle((left, 0, right, side - 1), radius=side * 0.08, fill=(28, 28, 32))
    draw.rectangle(
        (left + side * 0.04, side * 0.09, right - side * 0.04, side * 0.88), fill=rng.choice(BRIGHT)
    )
    for row in range(4):
        for column in range(3):
            x, y = left + side * (0.09 + 0.145 * column), side * (0.15 + 0.17 * row)
            icon = rng.choice([(255, 255, 255), (255, 214, 90), (130, 230, 190)])
            draw.rounded_rectangle((x, y, x + side * 0.1, y + side * 0.1), radius=side * 0.025, fill=icon)
    draw.ellipse((side * 0.475, side * 0.91, side * 0.525, side * 0.96), fill=(180, 180, 186))


def _trophy(rng: random.Random, draw: ImageDraw.ImageDraw, side: int) -> None:
    metal = rng.choice([(240, 190, 40), (200, 204, 212), (205, 127, 50)])
    dark = _shade(metal, 0.7)
    for box in (
        (side * 0.05, side * 0.06, side * 0.45, side * 0.46),
        (side * 0.55, side * 0.06, side * 0.95, side * 0.46),
    ):
        draw.ellipse(box, outline=dark, width=side // 16)
    draw.chord((side * 0.2, -side * 0.5, side * 0.8, side * 0.62), 0, 180, fill=metal)
    draw.chord((side * 0.24, -side * 0.46, side * 0.42, side * 0.5), 0, 180, fill=_shade(metal, 1.25))
    draw.rectangle((side * 0.45, side * 0.58, side * 0.55, side * 0.8), fill=dark)
    draw.rectangle((side * 0.28, side * 0.8, side * 0.72, side - 1), fill=(70, 44, 30))
    draw.rectangle((side * 0.38, side * 0.85, side * 0.62, side * 0.94), fill=metal)


def _mug(rng: random.Random, draw: ImageDraw.ImageDraw, side: int) -> None:
    clay = rng.choice(BRIGHT)
    draw.ellipse(
        (side * 0.52, side * 0.34, side - 1, side * 0.82), outline=_shade(clay, 0.75), width=side // 11
    )
    draw.rounded_rectangle((0, side * 0.22, side * 0.74, side - 1), radius=side * 0.1, fill=clay)
    draw.ellipse((0, side * 0.12, side * 0.74, side * 0.34), fill=_shade(clay, 0.75))
    draw.ellipse((side * 0.06, side * 0.16, side * 0.68, side * 0.32), fill=(72, 40, 22))
    draw.polygon(_polygon((side * 0.37, side * 0.66), side * 0.15, 5, inner=0.45), fill=(255, 255, 255))


def _star(rng: random.Random, draw: ImageDraw.ImageDraw, side: int) -> None:
    gold = rng.choice([(250, 205, 40), (255, 170, 30), (240, 90, 120)])
    draw.polygon(_polygon((side / 2, side / 2), side * 0.5, 5, inner=0.45), fill=gold)
    draw.polygon(_polygon((side / 2, side / 2), side * 0.3, 5, inner=0.45), fill=_shade(gold, 1.2))


DRAWERS: dict[str, Callable[[random.Random, int, int, str], Tile]] = {
    "PER": draw_person,
    "LOC": draw_place,
    "ORG": draw_logo,
    "OTHER": draw_thing,
}
ASPECTS = {"PER": (0.75, 0.95), "LOC": (1.2, 1.55), "ORG": (1.0, 1.5), "OTHER": (1.0, 1.0)}


@dataclass
class Picture:
    """A drawn picture and, by type, the box of what it shows: x_min, y_min, x_max, y_max in its pixels."""

    image: Image.Image
    boxes: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)


def draw_background(rng: random.Random, width: int, height: int) -> Image.Image:
    """A colour gradient with blurred blobs and noise."""
    low, high = sorted((rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.9)))
    colours = [
        _shade((rng.randrange(60, 255), rng.randrange(60, 255), rng.randrange(60, 255)), f)
        for f in (low, high)
    ]
    rng.shuffle(colours)
    small_w, small_h = width // 4, height // 4  # what gets blurred needs no more
    canvas = _gradient(small_w, small_h, colours[0], colours[1])
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.randrange(5, 12)):
        x, y, size = rng.uniform(0, small_w), rng.uniform(0, small_h), rng.uniform(0.06, 0.25) * small_w
        blob = _shade(rng.choice(BRIGHT), rng.uniform(0.5, 1.2))
        draw_blob = rng.choice([draw.ellipse, draw.rectangle])
        draw_blob((x - size, y - size * 0.6, x + size, y + size * 0.6), fill=blob)
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(2.5, 5.5)))
    canvas = canvas.resize((width, height), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(3, 10), (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(canvas) + noise, 0, 255).astype(np.uint8))


def draw_picture(rng: random.Random, shown: dict[str, str]) -> Picture:
    """A picture that shows the given types (type to surface; at most two), each in a half of its own."""
    width, height = rng.choice([(320, 240), (384, 288), (320, 320), (384, 384), (288, 384), (384, 256)])
    picture = Picture(draw_background(rng, width, height))
    # Two tiles stand side by side in a wide picture and one above the other in a tall one.
    parts = max(1, len(shown))
    upright = height > width
    order = rng.sample(sorted(shown), len(shown))
    for index, entity_type in enumerate(order):
        part_w, part_h = (width, height // parts) if upright else (width // parts, height)
        left, top = (0, index * part_h) if upright else (index * part_w, 0)
        tile = _fitted_tile(rng, entity_type, shown[entity_type], (width, height), (part_w, part_h))
        x, y = left + rng.randint(0, part_w - tile.width), top + rng.randint(0, part_h - tile.height)
        picture.image.paste(tile, (x, y), tile)
        picture.boxes[entity_type] = (x, y, x + tile.width, y + tile.height)
    return picture


def _fitted_tile(
    rng: random.Random, entity_type: str, surface: str, picture: tuple[int, int], part: tuple[int, int]
) -> Tile:
    """A tile whose longer side is 45 to 65 % of the picture's shorter one, made to fit its part."""
    aspect = rng.uniform(*ASPECTS[entity_type])
    longer = rng.uniform(0.45, 0.65) * min(picture)
    tile_w, tile_h = (longer, longer / aspect) if aspect >= 1 else (longer * aspect, longer)
    shrink = min(1.0, 0.94 * part[0] / tile_w, 0.94 * part[1] / tile_h)
    tile_w, tile_h = round(tile_w * shrink), round(tile_h * shrink)
    tile = DRAWERS[entity_type](rng, tile_w * OVERSAMPLE, tile_h * OVERSAMPLE, surface)
    return tile.resize((tile.width // OVERSAMPLE, tile.height // OVERSAMPLE), Image.Resampling.LANCZOS)


def illustrate(rng: random.Random, draft: Draft, names: Names) -> tuple[Picture, dict[str, str]]:
    """A picture for a post, and which of its entities it shows: one a type, two types at most."""
    types = rng.sample(sorted(draft.surfaces), len(draft.surfaces))
    shown = {name: draft.surfaces[name][0] for name in types if rng.random() < SHOWN}
    shown = dict(list(shown.items())[:2])
    drawn = dict(shown)
    others = sorted(set(names) - set(draft.surfaces))
    if not shown and rng.random() < DISTRACTOR / (1 - SHOWN):
        distractor = rng.choice(others)
        drawn[distractor] = rng.choice(names[distractor])
    return draw_picture(rng, drawn), shown


# ---- files ----------------------------------------------------------------------------------------------


def jpeg(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    """The picture as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, exif=exif or Image.Exif())
    return buffer.getvalue()


def voc_xml(filename: str, size: tuple[int, int], boxes: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    """A Pascal VOC file with a named box for each (name, x_min, y_min, x_max, y_max)."""
    objects = "".join(
        f"  <object>\n    <name>{escape(name)}</name>\n    <bndbox>"
        f"<xmin>{x_min}</xmin><ymin>{y_min}</ymin><xmax>{x_max}</xmax><ymax>{y_max}</ymax></bndbox>\n"
        "  </object>\n"
        for name, (x_min, y_min, x_max, y_max) in boxes
    )
    width, height = size
    return (
        f"<annotation>\n  <filename>{escape(filename)}</filename>\n"
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
        f"{objects}</annotation>\n"
    )


def write_split(rng: random.Random, output: Path, split: str, first_id: int, names: Names) -> None:
    """A split's text file, its pictures and, for two posts of three, their XML."""
    blocks = []
    for number in range(first_id, first_id + SPLIT_POSTS[split]):
        draft = make_draft(rng, names)
        picture, shown = illustrate(rng, draft, names)
        filename = f"{number}.jpg"
        (output / "demo_images" / filename).write_bytes(jpeg(picture.image))
        if rng.random() >= WITHOUT_XML:
            boxes = [(surface, picture.boxes[entity_type]) for entity_type, surface in shown.items()]
            xml = voc_xml(filename, picture.image.size, boxes)
            (output / "xml" / f"{number}.xml").write_text(xml, encoding="utf-8")
        words = [f"{token}\t{tag}" for token, tag in zip(draft.tokens, draft.tags, strict=True)]
        blocks.append("\n".join([f"IMGID:{number}", *words]) + "\n")
    (output / f"{split}.txt").write_text("\n".join(blocks), encoding="utf-8")


def spoil(kind: str, image: Image.Image) -> bytes:
    """A picture file of the kind that an archive of a million posts holds too."""
    buffer = io.BytesIO()
    if kind == "truncated":
        whole = jpeg(image)
        return whole[: len(whole) // 3]
    if kind == "html":
        return b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
    if kind == "zero_bytes":
        return b""
    if kind == "cmyk":
        return jpeg(image.convert("CMYK"))
    if kind == "palette":
        image.quantize(64).save(buffer, "PNG")
        return buffer.getvalue()
    if kind == "one_pixel":
        return jpeg(image.resize((1, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the viewer turns it a quarter clockwise
    return jpeg(image.transpose(Image.Transpose.ROTATE_90), exif)


SPOILT = ("truncated", "html", "zero_bytes", "cmyk", "palette", "one_pixel", "exif")
ODD_TEXTS = (
    "",
    None,
    "   ",
    "👏🏽👏🏽👏🏽 🇪🇺",
    "Cafe\u0301 con {PER} 😍 en {LOC}",
    "مرحبا {PER} 👋",
    "{ORG} " * 80,
)


def write_archive(rng: random.Random, output: Path, names: Names) -> None:
    """New posts as a Parquet table with absolute picture paths; the last ones are odd, each in its way."""
    directory = output / "archive" / "images"
    directory.mkdir(parents=True)
    rows = []
    for number in range(ARCHIVE_POSTS):
        draft = make_draft(rng, names)
        picture, _ = illustrate(rng, draft, names)
        path = directory / f"{number:04d}.jpg"
        odd = number - (ARCHIVE_POSTS - len(SPOILT) - len(ODD_TEXTS))
        spoilt = 0 <= odd < len(SPOILT)
        path.write_bytes(spoil(SPOILT[odd], picture.image) if spoilt else jpeg(picture.image))
        text: str | None = as_typed(draft.tokens)
        if odd >= len(SPOILT):
            template = ODD_TEXTS[odd - len(SPOILT)]
            text = template and SLOT.sub(lambda slot: rng.choice(names[slot[1]]), template)
        uri: str | None = str(path.resolve())
        if number % 50 == 7:
            path.unlink()  # a picture that was deleted after the post was stored
        elif number % 25 == 3:
            path.unlink()
            uri = None
        rows.append(
            {
                "post_id": f"night-{number:04d}",
                "text": text,
                "image_uri": uri,
                "created_at": FIRST_DAY + timedelta(minutes=3 * number),
                "lang": "en",
            }
        )
    schema = pa.schema(
        [
            ("post_id", pa.string()),
            ("text", pa.string()),
            ("image_uri", pa.string()),
            ("created_at", pa.timestamp("ms", tz="UTC")),
            ("lang", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), output / "archive" / "posts.parquet")


PHRASES = {  # how a caption may call what a picture shows, with its type in Flickr30K Entities
    "PER": ("people", ("a person", "somebody", "one man or woman", "the head of a person")),
    "LOC": ("scene", ("a place", "a landscape", "a view of a city or country", "the outdoors")),
    "ORG": ("other", ("a logo", "the sign of a company", "the brand of an organization")),
    "OTHER": ("other", ("a thing", "an object", "some product", "an item on its own")),
}


def write_phrases(rng: random.Random, output: Path, names: Names, pictures: int) -> None:
    """Pictures with two captions each in the layout of Flickr30K Entities; one in eight is for validation."""
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (output / name).mkdir(parents=True)
    ids = [str(1000 + number) for number in range(pictures)]
    for picture_id in ids:
        types = rng.sample(sorted(PHRASES), rng.choice((1, 2, 2, 3)))
        picture = draw_picture(rng, {kind: rng.choice(names[kind]) for kind in types})
        (output / "flickr30k-images" / f"{picture_id}.jpg").write_bytes(jpeg(picture.image))
        entities = {kind: f"{picture_id}{number}" for number, kind in enumerate(types)}
        boxes = [(entities[kind], picture.boxes[kind]) for kind in types]
        xml = voc_xml(f"{picture_id}.jpg", picture.image.size, boxes)
        (output / "Annotations" / f"{picture_id}.xml").write_text(xml, encoding="utf-8")
        captions = []
        for _ in range(2):
            marked = [
                f"[/EN#{entities[kind]}/{PHRASES[kind][0]} {rng.choice(PHRASES[kind][1])}]"
                for kind in rng.sample(types, len(types))
            ]
            captions.append(f"{' beside '.join(marked)} .\n")
        (output / "Sentences" / f"{picture_id}.txt").write_text("".join(captions), encoding="utf-8")
    for file, chosen in (("train.txt", ids[pictures // 8 :]), ("val.txt", ids[: pictures // 8])):
        (output / file).write_text("\n".join(chosen) + "\n", encoding="utf-8")


def clear_earlier(output: Path) -> None:
    """Remove what an earlier run wrote to `output`.

    Raises:
        DataError: if the directory holds anything and no earlier run's `demo.json`.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"{output}: is a file; give --output a directory")
    if any(output.iterdir()) and not (output / "demo.json").is_file():
        raise DataError(
            f"{output}: holds files that no earlier demo wrote; give --output an empty or new directory"
        )
    for split in SPLIT_POSTS:
        (output / f"{split}.txt").unlink(missing_ok=True)
    for name in ("demo_images", "xml", "archive", "phrases"):
        shutil.rmtree(output / name, ignore_errors=True)


def write_demo(output: Path, seed: int, phrases: int = 0) -> None:
    """Write the training set and the archive under `output`, in place of an earlier run's.

    With `phrases` so many pictures with captions are written to `output/phrases`, too.

    Raises:
        DataError: if `output` holds files that no earlier run wrote.
    """
    clear_earlier(output)
    for name in ("demo_images", "xml"):
        (output / name).mkdir(parents=True)
    (output / "demo.json").write_text(
        json.dumps({"seed": seed, **SPLIT_POSTS, "archive": ARCHIVE_POSTS}) + "\n"
    )
    rng = random.Random(seed)
    training_names, all_names = make_names(rng)
    first_id = 10000
    for split, count in SPLIT_POSTS.items():
        write_split(rng, output, split, first_id, training_names if split == "train" else all_names)
        first_id += count
    write_archive(rng, output, all_names)
    if phrases:
        write_phrases(rng, output / "phrases", training_names, phrases)


def main(argv: list[str]) -> None:
    """Write the demo's posts and say where they lie.

    Raises:
        MnerqgError: if the output directory holds something else.
    """
    parser = argparse.ArgumentParser(
        prog="demo_posts.py", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to write to")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--phrases", type=int, default=0, help="pictures to write in the layout of Flickr30K Entities, too"
    )
    arguments = parser.parse_args(argv)
    write_demo(arguments.output, arguments.seed, arguments.phrases)
    counts = ", ".join(f"{count} {split}" for split, count in SPLIT_POSTS.items())
    print(f"{counts} posts in {arguments.output}; {ARCHIVE_POSTS} to tag in {arguments.output / 'archive'}")


if __name__ == "__main__":
    run(main)
