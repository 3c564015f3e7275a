"""The application on a Ray head, started and ended by programs of their own, as by operators."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ray_head import Head, environment

ROOT = Path(__file__).parents[2]
UP = """
import json, sys, ray, ray.serve
from serve.app import app
from serve.settings import Settings
address, port, settings = sys.argv[1:]
ray.init(address=address, namespace="serve", log_to_driver=False)
ray.serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
ray.serve.run(app(Settings(**json.loads(settings))))
"""
DOWN = """
import sys, ray, ray.serve
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
ray.serve.shutdown()
"""
SLOW = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}
"""For busy machines."""


def start(head: Head, port: int, settings: dict[str, Any]) -> None:
    """Start the application; it answers when this returns."""
    _run(UP, head.address, str(port), json.dumps(settings))


def end(head: Head) -> None:
    """End Serve and the application; jobs go on."""
    _run(DOWN, head.address)


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=environment() | SLOW,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
