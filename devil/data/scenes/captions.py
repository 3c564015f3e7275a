"""The caption grammar: true sentences about planned objects and their background.

An object is named in one order (size, colour, texture, kind: "a large red striped circle"), so that
a caption can be checked by its words. No background, size or place is named with a word that also
names a colour, texture or kind.
"""

import math
from collections.abc import Sequence

import numpy as np

from devil.data.scenes.plan import SIZE_WORDS, Plan

CAPTIONS_PER_SCENE = 5

_BACKGROUND_PHRASES = {
    "sand": ("on sand", "on the sand"),
    "grass": ("on grass", "in the grass"),
    "hills": ("in front of hills", "over the hills"),
    "clouds": ("among clouds", "in front of clouds"),
    "night sky": ("in the night sky", "against a night sky"),
    "sea": ("on the sea", "over the sea"),
    "snow": ("on snow", "in the snow"),
    "wood": ("on wood", "on a table of wood"),
    "bricks": ("on bricks", "on a wall of bricks"),
    "pebbles": ("on pebbles", "among pebbles"),
}


def make_captions(
    rng: np.random.Generator, plans: Sequence[Plan], background: str
) -> tuple[str, ...]:
    """Five different captions: of one object, of two and of all, in random order."""
    forms = [_one, _one_placed, _two, _all, _one if rng.random() < 0.5 else _all]
    found: list[str] = []
    for form in (forms[index] for index in rng.permutation(CAPTIONS_PER_SCENE)):
        caption = form(rng, plans, background)
        while caption in found:
            caption = _OPENINGS[rng.integers(len(_OPENINGS))] + form(rng, plans, background)
        found.append(caption)
    return tuple(found)


_OPENINGS = ("", "a picture of ", "there is ", "we see ")


def _noun(rng: np.random.Generator, plan: Plan, detail: float = 0.45) -> str:
    """One object with its article, size and texture each named with probability `detail`."""
    words = [plan.colour]
    if plan.texture != "plain" and rng.random() < detail + 0.1:
        words.append(plan.texture)
    if rng.random() < detail:
        words.insert(0, str(rng.choice(SIZE_WORDS[plan.size])))
    return with_article(" ".join([*words, plan.kind]))


def with_article(noun: str) -> str:
    """A noun phrase as captions have it: "an orange fish"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _where(place: str) -> str:
    if place == "centre":
        return "in the centre"
    if place in ("left", "right"):
        return f"on the {place}"
    return f"at the {place}"


def _setting(rng: np.random.Generator, background: str) -> str:
    return str(rng.choice(_BACKGROUND_PHRASES[background]))


def _pick(rng: np.random.Generator, plans: Sequence[Plan]) -> Plan:
    """Draws an object, a large one twice as often: people name what they see first."""
    weights = np.array([2.0 if plan.size == "large" else 1.0 for plan in plans])
    return plans[rng.choice(len(plans), p=weights / weights.sum())]


def _one(rng, plans, background) -> str:
    return _noun(rng, _pick(rng, plans), 0.5)


def _one_placed(rng, plans, background) -> str:
    plan = _pick(rng, plans)
    if rng.random() < 0.5:
        return f"{_noun(rng, plan)} {_where(plan.place)}"
    return f"{_noun(rng, plan)} {_setting(rng, background)}"


def _two(rng, plans, background) -> str:
    if len(plans) == 1:
        return f"{_noun(rng, plans[0])} {_where(plans[0].place)} {_setting(rng, background)}"
    first, second = (plans[index] for index in rng.permutation(len(plans))[:2])
    caption = (
        f"{_noun(rng, first, 0.35)} {_relation(rng, first, second)} {_noun(rng, second, 0.35)}"
    )
    return f"{caption} {_setting(rng, background)}" if rng.random() < 0.35 else caption


def _relation(rng: np.random.Generator, first: Plan, second: Plan) -> str:
    """A word between two objects that is true of their places."""
    dx, dy = second.x - first.x, second.y - first.y
    gap = math.hypot(dx, dy) - first.radius - second.radius
    choices = ["and"]
    if abs(dy) > 1.5 * abs(dx):
        choices.append("above" if dy > 0 else "below")
    elif abs(dx) > 1.5 * abs(dy):
        choices.append("left of" if dx > 0 else "right of")
    if gap < 0.6 * max(first.radius, second.radius):
        choices.append("next to")
    return str(rng.choice(choices))


def _all(rng, plans, background) -> str:
    detail = 0.45 if len(plans) < 3 else 0.2
    nouns = [_noun(rng, plans[index], detail) for index in rng.permutation(len(plans))]
    listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return f"{listed} {_setting(rng, background)}" if rng.random() < 0.6 else listed
