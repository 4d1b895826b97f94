"""Train a tokenizer.

    accelerate launch scripts/train_tokenizer.py --config scripts/configs/base_tokenizer.yaml \
        dataset=DIR output_dir=runs/tokenizer model.head=nb
"""

from evae.training.launch import main

if __name__ == "__main__":
    main("tokenizer")
