"""The SDK: `AsyncClient` for asyncio, `Client` for everything else. Neither needs torch."""

from deltaserve.client.aio import DEFAULT_ADDRESS, AsyncClient
from deltaserve.client.generation import AsyncGeneration, Completion
from deltaserve.client.jobs import JobOptions, JobWatch, error_of_job
from deltaserve.client.requests import GenerateOptions, Prompt
from deltaserve.client.sync import Client, Generation
from deltaserve.client.transfer import UploadProgress

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncClient",
    "AsyncGeneration",
    "Client",
    "Completion",
    "GenerateOptions",
    "Generation",
    "JobOptions",
    "JobWatch",
    "Prompt",
    "UploadProgress",
    "error_of_job",
]
