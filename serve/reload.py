"""A served model that follows the switch of a folder of versions (`devil.release`).

The next version is loaded and tried in a thread while the present one goes on answering, and takes
its place between two batches. One that cannot explain a blank picture does not; it is tried again
after a while, for a disk or a full memory may have been to blame. While both are loaded they take
twice the memory.
"""

import logging
import threading
import time
from os import PathLike

import torch
from PIL import Image

from devil.config import DecodingConfig
from devil.describing import explain_images
from devil.model import DeViL
from devil.release import read_release, version_folder

WAIT_SECONDS, LONGEST_WAIT_SECONDS = 60.0, 900.0
"""Before a version that failed is tried again; the first doubles until it is the second."""

logger = logging.getLogger("ray.serve")


def load_probed(folder: str | PathLike[str], device: torch.device | str) -> DeViL:
    """Load a model and explain a blank picture, so that one that cannot is never ready."""
    model = DeViL.from_pretrained(folder, device=device)
    explain_images(
        model,
        [Image.new("RGB", (32, 32))],
        layers=model.layers[-1:],
        dense=False,
        decoding=DecodingConfig(max_new_tokens=1),
    )
    return model


class ServedModel:
    """The model of a folder; if it is one of versions, the current one, now and later."""

    def __init__(self, folder: str, device: torch.device | str, reload_seconds: float) -> None:
        """Load the model.

        Args:
            folder: model folder, folder of versions, or hub id.
            device: where the model goes.
            reload_seconds: how often the switch is looked at.
        """
        self.folder, self.device = folder, device
        release = read_release(folder)
        self._version = release.current if release else None
        self._failed: str | None = None
        self._again = self._wait = 0.0
        self.model = self._load(self._version)
        self._stopped = threading.Event()
        if release is not None:
            threading.Thread(
                target=self._follow, args=[reload_seconds], name="reload", daemon=True
            ).start()

    def stop(self) -> None:
        """Look at the switch no more."""
        self._stopped.set()

    __del__ = stop
    """Called by Ray Serve when another model needs the place."""

    def _load(self, version: str | None) -> DeViL:
        place = self.folder if version is None else version_folder(self.folder, version)
        return load_probed(place, self.device)

    def _follow(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            try:
                self._look()
            except Exception:  # whatever it is, the present model goes on answering
                logger.exception("%s stays, for the next one failed", self.model.version)

    def _look(self) -> None:
        """Take the version that the switch names, if it was moved."""
        release = read_release(self.folder)
        if release is None or release.current == self._version:
            return
        version, again = release.current, release.current == self._failed
        if again and time.monotonic() < self._again:
            return
        try:
            model = self._load(version)
        except Exception:
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS) if again else WAIT_SECONDS
            self._failed, self._again = version, time.monotonic() + self._wait
            raise
        old, self.model, self._version = self.model, model, version
        logger.info("%s takes the place of %s", version, old.version)
