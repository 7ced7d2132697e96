"""These tests are run by ../test_kernels.py, with Triton but without a GPU."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "0" else ["*"]
