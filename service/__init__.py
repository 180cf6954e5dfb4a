"""Answers requests: one BentoML service with our own door and batcher. Never imports training."""
