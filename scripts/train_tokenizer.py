"""Train a tokenizer on several GPUs; the same as `evae train tokenizer`.

    accelerate launch scripts/train_tokenizer.py --config base \
        dataset=data/screen output_dir=runs/tokenizer
"""

import sys

from evae.cli import main

if __name__ == "__main__":
    main(["train", "tokenizer", *sys.argv[1:]])
