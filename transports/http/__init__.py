"""HTTP to a server: connections, patience with it, and what its answers say.

client     requests with retries, over connections of their own for what is asked beside generation
pool       the connections
patience   how often and how long to try again
answers    a server's JSON, checked as it comes in
metrics    the Prometheus text that servers give
"""

from rollout.moved import forward

forward("transports.http")
