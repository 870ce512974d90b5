"""The demo Space: `python spaces/app.py --model runs/demo/model`, or `make space`.

On the Hub this folder is the root of the Space, and `modeling_cora/` and `publishing/` are uploaded beside this file,
since the package is not on PyPI. In the repository they lie in the folder above.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Gradio reads it on import; a Space may be restarted without a network.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Behind everything else: in the repository, the folder above has a folder `spaces`, this one, which would be taken for
# the package of that name where that one is not installed.
sys.path.append(str(Path(__file__).resolve().parents[1]))

try:
    import spaces  # before torch: it lends a GPU to the calls that ask for one (ZeroGPU)
except ImportError:
    spaces = None

from publishing.command_line import one_line_errors


def on_gpu(function: Any) -> Any:
    """`spaces.GPU` where that package is."""
    return getattr(spaces, "GPU", lambda plain: plain)(function)


@one_line_errors
def main(argv: list[str] | None = None) -> None:
    from cora_space.settings import read_settings

    settings = read_settings(argv)  # before the libraries, which take seconds
    from cora_space.serving import serve

    serve(settings, on_gpu)


if __name__ == "__main__":
    main()
