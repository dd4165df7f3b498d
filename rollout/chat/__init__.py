"""What is said, and when two messages are the same.

    messages    Message and its parts, as callers hand them in, made well-formed once
    canonical   the bytes that are compared: what carries nothing is not compared

Others take `Message` and `digest`.
"""
