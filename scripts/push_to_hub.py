"""Publish a trained model on the Hub; the same as `evae push`.

python scripts/push_to_hub.py RUN_DIR REPO_ID [--private] [--dry-run]
"""

import sys

from evae.cli import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
