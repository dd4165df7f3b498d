"""vLLM: its routes by `transport`, and what goes over them, both ways, by `wire`."""

from rollout.moved import forward

forward("transports.vllm")
