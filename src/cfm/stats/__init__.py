"""Mathematics on plain arrays: similarities of contrasts, and null models.

Nothing here is public; :mod:`cfm.tl`, :mod:`cfm.models` and :mod:`cfm.metrics` call it.
"""
