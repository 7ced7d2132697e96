"""These tests are run by tests/test_kernels.py, with Triton's interpreter on."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["*"]
