"""What an operator can set: `serve run serve.app:app model=FOLDER max_batch_size=16 ...`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RETRY_AFTER_SECONDS = 1
"""What a refused client is told to wait."""


class Settings(BaseModel):
    """Settings of the application; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(
        "runs/demo/model",
        description="Model folder, or one of versions, or hub id OWNER/NAME.",
    )
    reload_seconds: float = Field(
        5.0, gt=0, le=3600, description="How often a folder of versions is asked for a new one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where the model runs; `auto`: a GPU if there is one."
    )
    replicas: int = Field(1, ge=1, description="Copies of the model that answer side by side.")
    threads: int = Field(
        0, ge=0, description="Processor threads of each copy; 0: its share of the machine."
    )
    max_batch_size: int = Field(8, ge=1, le=1024, description="Pictures explained at once.")
    batch_wait_seconds: float = Field(
        0.01, ge=0, le=10, description="How long a picture waits for others to join it."
    )
    max_request_bytes: int = Field(
        20_000_000, ge=1, description="Longer request bodies are refused while they are read."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=16,
        le=100_000_000,
        description="Pictures with more pixels are refused before they are decoded.",
    )
    max_queued: int = Field(
        64, ge=1, description="Requests that wait for a free copy; beyond, clients get 429."
    )
    timeout_seconds: float = Field(
        120.0, gt=0, le=3600, description="A request that takes longer is given up with 503."
    )

    keys: str = Field(
        "",
        description="File of hashed API keys (`python -m serve.keys`); without one, those of the "
        "environment variable DEVIL_API_KEYS; without either, this machine alone is answered.",
    )

    log_format: Literal["json", "text"] = Field(
        "json", description="How logs are written: JSON for programs, text for people."
    )

    state: str = Field("runs/service", description="Folder in which audits are kept.")

    audit_roots: str = Field(
        "",
        description="Folders and bucket prefixes that audits may read, comma-separated; empty: "
        "uploads alone.",
    )
    audit_dashboard: str = Field(
        "", description="Address of Ray's dashboard, where jobs go; empty: this cluster's own."
    )
    audit_workers: int = Field(1, ge=1, description="Workers of each audit.")
    audit_threads: int = Field(
        1, ge=1, description="Processors, and threads, that each worker of an audit takes."
    )
    audit_gpus: float = Field(
        0.0, ge=0, description="GPUs that each worker of an audit takes; a fraction shares one."
    )
    max_audits: int = Field(
        16, ge=1, description="Audits that run or wait; beyond, clients get 429."
    )
    max_uploads: int = Field(4, ge=1, description="Uploads at once; beyond, clients get 429.")
    max_archive_bytes: int = Field(
        2_000_000_000, ge=1, description="Longer uploads are refused while they are read."
    )
    max_archive_pictures: int = Field(
        100_000, ge=1, description="Pictures of one upload; of all its files, four times as many."
    )
    max_unpacked_bytes: int = Field(
        10_000_000_000, ge=1, description="What an upload may unpack to."
    )
    upload_seconds: float = Field(
        3600.0, gt=0, le=86_400, description="How long an upload may take."
    )
    resume_audits: bool = Field(
        True, description="Go on, at the start, with audits whose cluster went away."
    )

    @property
    def max_ongoing(self) -> int:
        """Requests in one copy: a batch being explained, and one being decoded for the next."""
        return 2 * self.max_batch_size

    @property
    def max_open(self) -> int:
        """Requests that the ingress keeps open; some more than the copies and the queue hold, so
        that it has room to refuse and to answer health checks."""
        return self.max_queued + self.replicas * self.max_ongoing + 64
