"""A folder belongs to one run."""

from pathlib import Path

import pytest

from devil.errors import ConfigError
from pipelines.runs import claim_run


def test_the_same_run_is_known_again_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert not claim_run(path, {"steps": 3, "layers": ("a", "b")})
    assert claim_run(path, {"steps": 3, "layers": ("a", "b")})
    with pytest.raises(ConfigError, match="another seed, steps"):
        claim_run(path, {"steps": 4, "layers": ("a", "b"), "seed": 1})
    assert claim_run(path, {"steps": 3, "layers": ("a", "b")})
