"""The modules of the fuzzer lie beside the tests and are imported by name, as its command imports them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
