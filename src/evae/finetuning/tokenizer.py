"""The tokenizer of a checkpoint trained on with new cells, before its prior is."""

from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator

from evae.common.digests import weights_digest
from evae.data.streaming.mixture import Sources
from evae.finetuning.growth import grown_processor
from evae.finetuning.settings import FinetuneSettings
from evae.inference.checkpoint import Checkpoint
from evae.models.configuration_evae import COUNTS
from evae.models.contract_evae import EvaeError
from evae.training.labels import check_same_labels
from evae.training.loop.claim import claimed_folder
from evae.training.loop.stopping import stopping_together
from evae.training.resume.run_folder import FINISHED
from evae.training.settings import Settings, TokenizerSettings
from evae.training.tokenizer import report_finished, train_from


def finetune_tokenizer(
    before: Checkpoint, sources: Sources, settings: FinetuneSettings, accelerator: Accelerator
) -> Path:
    """Train the tokenizer on, with the settings of the fine-tuning, in the folder `OUTPUT_DIR_tokenizer`.

    Returns:
        its run folder. A finished run of the same settings is taken as it is.

    Raises:
        EvaeError: a prior without latents has no tokenizer; and what training raises.
    """
    if before.tokenizer.config.quantizer in COUNTS:
        raise EvaeError(f"{before.name} works on the counts and has no tokenizer to train; leave tokenizer out.")
    check_same_labels(before.tokenizer, sources.info, before.name)
    shared = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    out = Path(settings.output_dir)
    own = TokenizerSettings(**shared | {"output_dir": str(out.with_name(f"{out.name}_tokenizer"))})
    with claimed_folder(own, accelerator) as run:
        if run.status == FINISHED:
            return report_finished(run)
        with stopping_together(run, accelerator, own.compile) as check_stop:
            model = type(before.tokenizer)(before.tokenizer.config)
            model.load_state_dict(before.tokenizer.state_dict())
            processor = grown_processor(before.processor, sources.info)
            digest = weights_digest(model)
            return train_from(model, processor, sources, own, accelerator, run, check_stop, digest)
