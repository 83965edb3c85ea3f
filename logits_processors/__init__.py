"""EM-INF on rows of logits, and the vLLM logits processor round it.

Imports nothing: reading settings never loads torch.
"""
