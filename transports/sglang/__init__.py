"""SGLang.

transport   its routes, and how requests are ended, pauses made and weights loaded
probe       what a server does, found out by asking it
streamed    the same route as Dynamo's frontend serves it
wire        what goes over the routes, both ways
"""
