"""Parts of :func:`cfm.tl.cell_codes`."""
