"""The files that a job makes."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file of a job."""

    artifact_name: str
    """Name within the job, such as `lora.safetensors` or `previews/50-1.png`."""
    uri: str
    """`s3://bucket/key`."""
    size_bytes: int
    content_digest: str
    """sha256 of the file as hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class DownloadLink:
    """Where a file can be fetched with plain HTTP, by whoever has the address."""

    url: str
    expire_time: datetime | None
    """When the address ceases to work."""
    artifact: Artifact
