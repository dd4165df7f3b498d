"""What a server can do, found out by asking it.

probe    the questions, and a verdict that names what is missing
shapes   whether prompts and bridges made here are the server's, by shape
"""

from rollout.moved import forward

forward("rollout.probe")
