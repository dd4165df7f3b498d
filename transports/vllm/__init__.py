"""vLLM.

transport   its routes, and what each is asked for
wire        what goes over them, both ways
"""

from rollout.moved import forward

forward("transports.vllm")
