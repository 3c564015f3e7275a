"""DeViL over HTTP, on Ray Serve: `serve run serve.app:app model=FOLDER`.

Reading order: `settings` → `schemas` → `problems` → `models` → `body` → `openapi` → `desk` →
`explainer` → `explaining`, `kept` → `app`. This package has the name of a module of Ray; inside it,
write `import ray.serve` in full.
"""
