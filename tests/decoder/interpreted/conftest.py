"""These tests are run by ../test_kernels.py, with Triton's interpreter on."""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]
