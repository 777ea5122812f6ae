"""Parts of :func:`cfm.tl.knowledge_graph`."""
