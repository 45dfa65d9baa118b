"""`python -m sequoia.runtime.native`: compile the engine ahead, for every processor that it can run on."""

from __future__ import annotations

import sys

from sequoia.runtime.native.library import NativeUnavailableError, compile_library, find_compiler
from sequoia.runtime.native.prebuilt import FOLDER, VARIANTS


def main() -> int:
    """Write the libraries beside the source and print their paths; 1 where that is impossible."""
    try:
        compiler = find_compiler()
        FOLDER.mkdir(exist_ok=True)
        for variant in VARIANTS:
            compile_library(compiler, variant.options, variant.path)
            sys.stdout.write(f"{variant.path}\n")
    except (NativeUnavailableError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
