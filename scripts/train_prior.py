"""Train a prior over a trained tokenizer's codes.

    accelerate launch scripts/train_prior.py --config scripts/configs/base_prior.yaml \
        dataset=DIR tokenizer=runs/tokenizer output_dir=runs/prior
"""

from evae.training.launch import main

if __name__ == "__main__":
    main("prior")
