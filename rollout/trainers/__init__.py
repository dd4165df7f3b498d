"""The engine inside trainers that other people wrote, a file for each.

Nothing here imports a trainer where it is imported: what a file needs of one is imported where it is used.
"""
