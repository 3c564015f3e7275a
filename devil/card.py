"""The model card: what a model folder's README.md says, with its measured scores and controls."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from devil.model import DeViL


def model_card(model: "DeViL", config: Mapping[str, Any]) -> str:
    """Markdown with the hub's metadata in front."""
    layers = "\n".join(
        f"| `{name}` | {shape.channels} | {shape.height} × {shape.width} |"
        for name, shape in model.shapes.items()
    )
    scores = _scores(model.summary.get("scores", {}))
    return f"""---
library_name: devil
pipeline_tag: image-to-text
tags: [interpretability, explainability, devil]
---

# {model.name}

Describes, in plain language, what layers and locations of `{config["backbone"]["name"]}` hold
(weights `{config["backbone_digest"]}`), through the frozen language model
`{config["language_model"]["name"]}`. Method: DeViL (GCPR 2023, arXiv 2309.01617).

| layer | channels | grid |
|---|---|---|
{layers}

The translator has {model.translator.parameter_count():,} parameters.

```python
from devil import DeViL

model = DeViL.from_pretrained("this folder")
model.explain("photo.jpg", queries=["dog"]).to_html("photo.html")
```

## Measured

{scores}

A score means something beside its control only: `shuffled` is the same model on features of another
picture. What a caption says is what the features let the language model say; fluent text alone
proves nothing about the backbone.
"""


def _scores(scores: Mapping[str, Any]) -> str:
    if not scores:
        return "Not measured yet."
    rows = "\n".join(
        f"| {name} | {value:.3f} |" for name, value in scores.items() if value is not None
    )
    return f"| score on held-out rows | value |\n|---|---|\n{rows}"
