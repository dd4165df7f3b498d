"""What user code may do to the process it runs in, and what of that is contained.

threads      what may block runs in daemon threads, which are abandoned where they hang
user_tasks   tasks that user code starts: contained, and cancelled when their rollout ends
blocked      user code that the whole run waits for is said, and broken off where it blocks the event loop
exits        what would end the process ends one rollout's call
forks        a forked child ends where its call ends, and never becomes a second engine
imports      modules and files of the user's, imported as `python file.py` would
stdio        standard output belongs to the command
open_files   the limit of open files, raised to what is needed
"""
