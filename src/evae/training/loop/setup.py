"""The Accelerator of a run: device, precision, ranks and trackers."""

import atexit
import importlib.util
import os
import warnings

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin, ProjectConfiguration
from torch import nn

from evae.common.logs import logger
from evae.common.messages import number_of
from evae.models.contract_evae import EvaeError
from evae.models.sampling_evae import check_compiler
from evae.training.settings import Settings

LOG = logger(__name__)

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # how torch tells
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def make_accelerator(settings: Settings) -> Accelerator:
    """Build the Accelerator as `accelerate launch` or `torchrun` set up the ranks.

    Raises:
        EvaeError: the tracker is not installed, or the launch asks for what the loop does not do.
    """
    tracker = settings.report_to
    if tracker != "none" and importlib.util.find_spec(MODULES[tracker]) is None:
        raise EvaeError(f"report_to={tracker} needs the package: pip install {MODULES[tracker]}")
    if settings.compile:
        check_compiler()
    precision = settings.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() or cpu_has_bfloat16() else "no"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    AcceleratorState._reset_state()  # it would hold all runs of a process to the precision of the first
    accelerator = Accelerator(
        # Without a GPU, Accelerate joins torchrun's ranks only when told; else each would train on its own.
        cpu=ranks > 1 and not torch.cuda.is_available(),
        mixed_precision=precision,
        log_with=None if tracker == "none" else tracker,
        project_config=ProjectConfiguration(project_dir=settings.output_dir, logging_dir=settings.output_dir),
    )
    if accelerator.num_processes != ranks:
        raise EvaeError(
            f"{number_of(ranks, 'process was', 'processes were')} launched but Accelerate sees "
            f"{accelerator.num_processes}; launch with torchrun, or check `accelerate config`."
        )
    if ranks == 1 and {"ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        # What `accelerate launch` sets for several processes; without a GPU each it starts one all the same.
        raise EvaeError(
            "`accelerate launch` was asked for several processes and started one, as it does on CPUs; start them with "
            "`torchrun --nproc_per_node N` in place of `accelerate launch --num_processes N`, or ask for one process "
            "and unset MASTER_ADDR."
        )
    if accelerator.distributed_type not in SUPPORTED:
        raise EvaeError(
            f"training runs on one process, with data parallelism or with FSDP, not with "
            f"{accelerator.distributed_type.value}; choose one of these in `accelerate config`."
        )
    if ranks > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        _set_up_fsdp(accelerator)
    if ranks > 1:
        atexit.unregister(_part)
        atexit.register(_part)
    # MKL would choose the number of threads by itself, call by call; a number that is set keeps runs equal.
    torch.set_num_threads(torch.get_num_threads())
    return accelerator


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16 (AVX512_BF16 or AMX); elsewhere they are slower."""
    return any(getattr(torch.cpu, name, bool)() for name in BFLOAT16)


def say_where(accelerator: Accelerator) -> None:
    """Tell how many processes train, and on what."""
    ranks, device = accelerator.num_processes, accelerator.device
    processes = number_of(ranks, "process", "processes")
    threads = torch.get_num_threads()
    more = torch.cuda.get_device_name(device) if device.type == "cuda" else number_of(threads, "thread")
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    text = f"{processes} on {device.type} ({more}{' each' * (ranks > 1)}), {precision}"
    if accelerator.is_main_process:
        LOG.info(text)


def compile_blocks(model: nn.Module) -> None:
    """Compile the model's blocks, or the whole of a model that names none, in place: weights keep their names.

    Most time goes there, all layers share one compilation, and the cells' random streams, which the compiler does not
    take, stay outside.
    """
    names = getattr(model, "_no_split_modules", None) or [type(model).__name__]
    for module in model.modules():
        if type(module).__name__ in names:
            module.compile()


def _set_up_fsdp(accelerator: Accelerator) -> None:
    """Take what `accelerate config` says about FSDP, on CPUs too, where Accelerate itself leaves it aside."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise EvaeError("training runs with version 2 of FSDP; set fsdp_version: 2 in `accelerate config`.")
    plugin.cpu_ram_efficient_loading = False  # every rank has the whole model when training begins
    # It warns of in-place changes to what a layer returns; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module", category=UserWarning)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP


def _part() -> None:
    """Leave the group of ranks in order when the process ends; until then it may train again."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def start_trackers(accelerator: Accelerator, settings: Settings, title: str) -> None:
    """Open the trackers with the run's settings."""
    values = settings.to_dict()
    flat = {k: v for k, v in values.items() if k != "model"} | {f"model.{k}": v for k, v in values["model"].items()}
    plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in flat.items()}
    # TensorBoard writes into a folder of this name inside the run; the others show it as the project.
    name = "tensorboard" if settings.report_to == "tensorboard" else f"evae-{title}"
    accelerator.init_trackers(name, config=plain)
