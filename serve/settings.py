"""What an operator can set: `serve run serve.app:app model=FOLDER turn_locations=512 ...`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

RETRY_AFTER_SECONDS = 1
"""What a refused client is told to wait."""


class Settings(BaseModel):
    """Settings of the application; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(
        "runs/demo/model",
        description="Model folder, or one of versions, or hub id OWNER/NAME; several with commas "
        "between, the default first; NAME=FOLDER calls one otherwise than it calls itself.",
    )
    max_models: int = Field(
        2, ge=1, description="Models that a copy holds at once; the least recently used goes."
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
    turn_locations: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Locations read at once, of all requests together; a quarter more if nothing "
        "is left then.",
    )
    max_wait_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="A picture that others would delay for longer is refused with 429.",
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
    max_pictures: int = Field(64, ge=1, le=10_000, description="Pictures of one request.")
    max_open: int = Field(
        256, ge=8, description="Requests that are open at once; beyond, clients get 429."
    )
    timeout_seconds: float = Field(
        120.0, gt=0, le=3600, description="A picture that takes longer is given up with 503."
    )
    state: str = Field("runs/service", description="Folder of what the service keeps.")
    keep_explanations: int = Field(
        1000, ge=0, description="Explanations kept under their ids; the oldest go first."
    )

    keys: str = Field(
        "",
        description="File of hashed API keys (`python -m serve.keys`); without one, those of the "
        "environment variable DEVIL_API_KEYS; without either, this machine alone is answered.",
    )

    log_format: Literal["json", "text"] = Field(
        "json", description="How logs are written: JSON for programs, text for people."
    )

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
        100_000,
        ge=1,
        description="Pictures of one upload; of all its files and folders, four times as many.",
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
