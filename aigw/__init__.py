"""aigw, an AI gateway: one process between applications and LLM providers."""

__version__ = "0.1.0"
