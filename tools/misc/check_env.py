"""Report the parts of this Python environment and their problems; exit code 1 if something would break.

Versions of the stack, mmcv's compiled ops, CUDA, Triton, the C++ compiler, and the backends of the peripheral
convolution. Takes about as long as to import everything.
"""

import argparse
import sys

from pelk_mm.diagnostics.environment import examine_environment
from pelk_mm.diagnostics.finding import has_error, to_text


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    findings = examine_environment()
    print(to_text(findings))
    if has_error(findings):
        sys.exit(1)


if __name__ == '__main__':
    main()
