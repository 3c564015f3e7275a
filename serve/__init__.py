"""DeViL over HTTP, on Ray Serve: `serve run serve.app:app model=FOLDER`.

Reading order: `settings` → `schemas` → `problems` → `body` → `openapi` → `explainer` → `app`. This
package has the name of a module of Ray; inside it, write `import ray.serve` in full.
"""
