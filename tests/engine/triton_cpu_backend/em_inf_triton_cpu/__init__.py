"""A Triton backend named "cpu" that compiles nothing.

vLLM's V2 runner wants Triton with a "cpu" backend, which PyPI does not have. With this
folder on `PYTHONPATH`, `TRITON_INTERPRET=1` and `VLLM_USE_V2_MODEL_RUNNER=1` the runner
starts, and all its kernels run in Triton's interpreter, slowly. For tests only.
"""
