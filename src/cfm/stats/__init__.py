"""Mathematics on plain arrays: similarities of contrasts, and what chance gives.

Nothing here is public; :mod:`cfm.tl` calls it.
"""
