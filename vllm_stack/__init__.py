"""vllm-stack: N vLLM workers behind one OpenAI-compatible door, on bare metal."""

__version__ = "0.1.0"
