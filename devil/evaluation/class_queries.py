"""What a classifier predicts, put in words for DeViL's maps; making them is left to `query_maps`.

A classifier's label must be put in words before a language model can be asked for it. `name` asks
for the class's plain name; a small language model may not know "bedlington terrier", so `head` asks
for its last word ("terrier"), and `caption` for what the model itself says of the whole picture,
which needs no name at all and follows the picture rather than the class.

Within one map the calibrations `none`, `pmi` and `mean` differ by a constant or a positive factor:
they rank locations alike, so everything that looks at the order of locations alone (insertion,
deletion, pointing) is the same for the three by construction. Only `contrast` ranks anew.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from devil.decoding import greedy_captions
from devil.errors import ConfigError
from devil.evaluation.map_setting import MapSetting
from devil.model import DeViL
from devil.picture_features import Features, pooled_features
from devil.saliency import CALIBRATIONS, Calibration
from devil.types import ALL_LAYERS

Wording = Literal["name", "head", "caption"]
WORDINGS: tuple[str, ...] = get_args(Wording)

FORM = "LAYERS/WORDING/CALIBRATION[/smoothing=3][/neighbours=1][/PROMPT]"
NUMBER = {"smoothing": re.compile(r"\d+"), "neighbours": re.compile(r"\d+(\.\d+)?")}
RIVALS = 9
"""Next most probable classes whose words `contrast` sets against the predicted one's."""


@dataclass(frozen=True, kw_only=True)
class ClassQuery:
    """Which map stands for DeViL, in one line as `FORM` says."""

    wording: Wording
    """What is asked for: the class's `name`, its `head` word, or the model's own `caption`."""
    calibration: Calibration
    """As in `devil.saliency.calibrate`; see above on those that rank alike."""
    setting: MapSetting
    """How the map is made; contrasts `names` with the calibration `contrast`, else `none`."""

    def __post_init__(self) -> None:
        if self.wording == "caption" and self.calibration == "contrast":
            raise ConfigError(
                "calibration 'contrast' sets classes against each other, and wording 'caption' "
                "asks for none; use another calibration or wording."
            )
        contrast = "names" if self.calibration == "contrast" else "none"
        if self.setting.contrast != contrast:
            raise ConfigError(
                f"calibration {self.calibration!r} needs a map setting with contrast "
                f"{contrast!r}, not {self.setting.contrast!r}."
            )

    @property
    def label(self) -> str:
        """The query in one line; `parse` reads it back."""
        setting = self.setting
        parts = ["+".join(setting.layers), self.wording, self.calibration]
        parts += [f"smoothing={setting.smoothing}"] if setting.smoothing != 1 else []
        parts += [f"neighbours={setting.neighbours:g}"] if setting.neighbours else []
        return "/".join([*parts, setting.prompt] if setting.prompt else parts)

    @classmethod
    def parse(cls, text: str) -> "ClassQuery":
        """Read `all/name/contrast`, `blocks.8+blocks.11/head/none/smoothing=3/a photo of a`, ...

        Raises:
            ConfigError: the text has another form, or a part has a value that is not allowed.
        """
        parts = text.split("/")
        if len(parts) < 3:
            raise ConfigError(
                f"setting {text!r} has {len(parts)} parts; write {FORM}, as in all/name/contrast."
            )
        layers, wording, calibration, *rest = parts
        for name, value, allowed in (
            ("wording", wording, WORDINGS),
            ("calibration", calibration, CALIBRATIONS),
        ):
            if value not in allowed:
                raise ConfigError(
                    f"setting {text!r}: {name} is {value!r}; allowed: {', '.join(allowed)}."
                )
        numbers = {"smoothing": 1.0, "neighbours": 0.0}
        while rest and "=" in rest[0]:
            name, _, number = rest.pop(0).partition("=")
            if name not in NUMBER or not NUMBER[name].fullmatch(number):
                raise ConfigError(
                    f"setting {text!r}: {name} is {number!r}; give a number for one of "
                    f"{', '.join(NUMBER)}."
                )
            numbers[name] = float(number)
        if any("=" in part for part in rest):
            raise ConfigError(f"setting {text!r}: numbers stand before the prompt, as in {FORM}.")
        return cls(
            wording=wording,  # type: ignore[arg-type]
            calibration=calibration,  # type: ignore[arg-type]
            setting=MapSetting(
                layers=tuple(layers.split("+")),
                prompt="/".join(rest),
                smoothing=int(numbers["smoothing"]),
                neighbours=numbers["neighbours"],
                contrast="names" if calibration == "contrast" else "none",
            ),
        )

    @property
    def ranking(self) -> "ClassQuery":
        """The query that stands for all those that rank locations like this one."""
        return self if self.calibration == "contrast" else replace(self, calibration="none")


def class_wordings(
    probabilities: Float[Tensor, " label"],
    names: Sequence[str],
    wording: Wording,
    rivals: int = RIVALS,
) -> list[str]:
    """Words for the most probable class, then different ones for the next.

    Args:
        probabilities: of the classes, on the clean picture.
        names: plain names by class.
        wording: `name`, or `head` for the last word of each.
        rivals: how many to find; fewer if the classes have no more different words.

    Raises:
        ConfigError: there is not one name for each class, or the wording is none of a class.
    """
    if len(names) != len(probabilities):
        raise ConfigError(f"{len(probabilities)} classes have {len(names)} names; give all.")
    if wording == "caption":
        raise ConfigError("wording 'caption' is no wording of classes; allowed: name, head.")
    found: dict[str, None] = {}
    for index in probabilities.argsort(descending=True, stable=True).tolist():
        words = names[int(index)].split()
        found.setdefault(words[-1] if wording == "head" else " ".join(words))
        if len(found) > rivals:
            break
    return list(found)


def own_captions(model: DeViL, features: Features) -> list[str]:
    """What the model says of each whole picture, from all layers at once."""
    prefix = model.prefix(pooled_features(model, features, ALL_LAYERS))
    return [caption.text for caption in greedy_captions(model.language_model, prefix)]


def picture_words(
    model: DeViL,
    features: Features,
    probabilities: Float[Tensor, "batch label"],
    names: Sequence[str],
    wording: Wording,
) -> list[list[str]]:
    """For each picture what is asked for, and then what that is contrasted with.

    Args:
        model: the model.
        features: the pictures' maps (`devil.picture_features.image_features`).
        probabilities: of the classes, on the clean pictures.
        names: plain names by class.
        wording: of the query.

    Raises:
        ConfigError: there is not one name for each class.
    """
    if wording == "caption":
        return [[text] for text in own_captions(model, features)]
    return [class_wordings(row, names, wording) for row in probabilities]
