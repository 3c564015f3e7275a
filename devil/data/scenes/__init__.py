"""Captioned scenes: a few objects on a background, with exact pixel masks and true captions.

Reading order: `plan` (words, planned objects), `objects` and `backgrounds` (drawing), `captions`
(the grammar), `scene` (a whole scene from one integer), `shards` (scenes on disk).
"""

from devil.data.scenes.captions import CAPTIONS_PER_SCENE, with_article
from devil.data.scenes.plan import COLOURS, PLACES, SIZE_WORDS, SIZES, TEXTURES
from devil.data.scenes.scene import (
    Scene,
    SceneConfig,
    SceneObject,
    render_scene,
    scene_captions,
    scenes,
)
from devil.data.scenes.shards import read_scene_objects, write_scene_shards

__all__ = [
    "CAPTIONS_PER_SCENE",
    "COLOURS",
    "PLACES",
    "SIZES",
    "SIZE_WORDS",
    "TEXTURES",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "read_scene_objects",
    "render_scene",
    "scene_captions",
    "scenes",
    "with_article",
    "write_scene_shards",
]
