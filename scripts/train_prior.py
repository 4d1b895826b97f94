"""Train a prior on several GPUs; the same as `evae train prior`.

    accelerate launch scripts/train_prior.py --config base \
        dataset=data/screen tokenizer=runs/tokenizer output_dir=runs/prior
"""

import sys

from evae.cli import main

if __name__ == "__main__":
    main(["train", "prior", *sys.argv[1:]])
