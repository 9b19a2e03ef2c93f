"""Input: bundles; output: a model repository of the Triton Inference Server, with a client and a page on scaling out.

Serving itself is Triton's.
"""

from vitexport.triton.models import DEFAULT_INSTANCES, DEFAULT_QUEUE_DELAY_US, ServeRequest
from vitexport.triton.repository import write_repository

__all__ = ["DEFAULT_INSTANCES", "DEFAULT_QUEUE_DELAY_US", "ServeRequest", "write_repository"]
