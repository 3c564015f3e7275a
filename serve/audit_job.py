"""The job of one audit, on the cluster: `python -m serve.audit_job FOLDER ATTEMPT`.

Reads the folder's request, runs `pipelines.audit`, and writes down how it ended. What goes wrong is
told without a path of this machine; the whole of it is in the job's log.
"""

import logging
import sys
import traceback
from pathlib import Path

from devil.audit import AuditConfig
from devil.config import DecodingConfig
from pipelines.audit import AuditOptions, audit
from pipelines.cli import devil_error
from pipelines.pool import PoolConfig
from serve.audit_folder import PICTURES, AuditFolder, End, Request
from serve.telling import told

OURS = "The job failed for a reason of its own; the server's operator finds it in the job's log."


def main(folder: AuditFolder, attempt: int) -> int:
    """Run an audit; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    request = folder.request()
    try:
        audit(options(folder, request))
    except Exception as error:
        traceback.print_exc()
        ours = devil_error(error)
        known = {request.address: request.images or PICTURES, request.model_folder: request.model}
        problem = told(str(ours), known) if ours else OURS
        folder.write_end(attempt, End("failed", problem))
        return 1
    folder.write_end(attempt, End("finished", None))
    return 0


def options(folder: AuditFolder, request: Request) -> AuditOptions:
    """The pipeline's options for a request."""
    asked = dict(request.options)
    decoding = DecodingConfig(max_new_tokens=asked.pop("max_new_tokens"))
    asked |= {name: tuple(asked[name]) for name in ("layers", "queries")}
    return AuditOptions(
        model=request.model_folder,
        images=request.address,
        output=str(folder.output),
        audit=AuditConfig(max_pixels=request.max_pixels, **asked),
        decoding=decoding,
        pool=PoolConfig(
            workers=request.workers,
            cpus_per_worker=request.cpus,
            gpus_per_worker=request.gpus,
        ),
        title=request.title,
        inside=request.inside,
        whole_paths=False,
    )


if __name__ == "__main__":
    sys.exit(main(AuditFolder(Path(sys.argv[1])), int(sys.argv[2])))
