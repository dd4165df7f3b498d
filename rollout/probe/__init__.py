"""What a server can do, found out by asking it.

probe    the questions, and a verdict that names what is missing
shapes   which shapes of tail a model's template lets us prove
"""

from rollout.moved import forward

forward("rollout.probe")
