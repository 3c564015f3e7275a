"""The service from Python: pictures in, explanations out, audits from start to result.

`Client` blocks and `AsyncClient` awaits; what they ask and how they read it is written once
(`service`), over two ways to send it (`transports`). Reading order: `options` → `calls` →
`retries` → `transports` → `service` → `audits` → `blocking`. Needs httpx and no torch.
"""

from devil.client.blocking import Client
from devil.client.documents import Audit, Outcome, ServedModel
from devil.client.retries import RetryConfig
from devil.client.service import AsyncClient

__all__ = ["AsyncClient", "Audit", "Client", "Outcome", "RetryConfig", "ServedModel"]
