"""The pictures of the demo's world, and where in them what they show stands.

A picture shows a type as a figure (PER), a postcard of a place (LOC), a logo on a plaque (ORG) or a thing (OTHER).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
