"""The models that requests can name, and where each lies now."""

from pathlib import Path

from devil.release import read_release, version_folder
from serve.problems import ProblemError
from serve.settings import Settings


def model_folder(settings: Settings, model_id: str | None) -> str:
    """A model's folder; of a folder of versions, the current one's.

    Args:
        settings: of the application.
        model_id: None: the default.

    Raises:
        ProblemError: 422, no such model.
    """
    folder = Path(settings.model)
    if model_id not in (None, folder.name):
        raise ProblemError(422, f"model: no such model; there is {folder.name}.", "model")
    release = read_release(folder)
    return str(version_folder(folder, release.current) if release else folder)
