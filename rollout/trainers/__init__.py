"""The engine inside trainers that other people wrote, a file for each.

Nothing here imports a trainer where it is imported: what a file needs of one is imported where it is used. The one
exception is `verl_loop`, whose class verl imports by its name.

`rows.py` cuts our samples as most trainers want them; `shared.py` keeps an engine for callers who own none.
"""
