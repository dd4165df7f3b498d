"""What is said, and when two messages are the same.

    messages    Message and its parts, as callers hand them in, made well-formed once
    canonical   the bytes that are compared: what carries nothing is not compared
    late_system  system and developer messages behind the beginning, folded into the user messages beside them
    tool_spec   a function's signature and docstring -> the tool that a model is offered

Others take `Message` from `rollout.chat.messages`, and `digest` from `rollout.chat.canonical`.
"""
