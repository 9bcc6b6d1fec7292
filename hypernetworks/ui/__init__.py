"""Everything that knows gradio: the training tab, the generation panel and the standalone app. It speaks to `host.Host` only."""
