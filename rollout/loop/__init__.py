"""Keeps the event loop awake, and keeps time on it.

lag         how late the loop is
collector   the garbage collector's full collections, made seldom
turnstile   takes turns where many would start at once
deadlines   a clock that stands still while we ourselves hold the servers
thread      a loop in a thread of its own, for callers that block
"""
