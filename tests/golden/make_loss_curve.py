"""Write the golden loss curve again: `python tests/golden/make_loss_curve.py`.

Forty steps of the tiny translator on seeded features and captions, in float32 on one core. Run it
only for a change that is meant to change numbers, and say so in the commit.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
CURVE = FOLDER / "loss_curve.json"


def loss_curve(folder: Path) -> list[float]:
    """The losses; files go to `folder`."""
    import stores
    import tiny

    from devil.batches import TrainingBatches
    from devil.config import TrainingConfig
    from devil.training import Trainer
    from devil.translator import Translator

    config = TrainingConfig(
        steps=40,
        batch_size=8,
        captions_per_image=2,
        learning_rate=3e-3,
        final_learning_rate=1e-4,
        warmup_steps=5,
        weight_decay=1e-2,
        max_caption_tokens=30,
        precision="float32",
        validation_rows=4,
        chunk_rows=20,
        seed=7,
    )
    lm = tiny.load_tiny_language_model(folder / "lm", "opt")
    store = stores.synthetic_store(folder / "store", parts=(14, 9, 13))
    batches = TrainingBatches(store, lm, config, class_tokens=True)
    torch.manual_seed(config.seed)
    translator = Translator(
        replace(tiny.SMALL, class_tokens=True),
        {name: shape.channels for name, shape in store.manifest.layers.items()},
        lm.embedding_width,
    )
    translator.standardise_by(batches.statistics())
    trainer = Trainer(translator, lm, config)
    return [trainer.train_step(batch).loss for batch in batches(0, config.steps)]


def main() -> None:
    """Write `loss_curve.json` beside this file."""
    sys.path[:0] = [str(FOLDER.parent), str(FOLDER.parent.parent)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        losses = loss_curve(Path(folder))
    CURVE.write_text(json.dumps([round(loss, 7) for loss in losses], indent=1) + "\n")
    print(f"{CURVE}: {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps")


if __name__ == "__main__":
    main()
