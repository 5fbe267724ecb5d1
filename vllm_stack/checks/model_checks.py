"""The model: whether it is there, and whether it goes into the GPUs of a worker."""

from __future__ import annotations

import os

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.checks.gpu_checks import slices_or_none
from vllm_stack.errors import HubError, ModelError, StackError
from vllm_stack.gpus.box import Gpu
from vllm_stack.inventory import Inventory
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.estimate import estimate
from vllm_stack.model.hub import offline, uses_modelscope
from vllm_stack.model.rules import (
    dtype_refusal,
    dtype_warning,
    heads_refusal,
    kv_replication,
    quantization_refusal,
)
from vllm_stack.options import Options
from vllm_stack.planning.demand import config_is_overridden, demand_of
from vllm_stack.planning.more_boxes import on_more_boxes
from vllm_stack.planning.placement import most_gpus
from vllm_stack.sizes import gib
from vllm_stack.vllm_arguments import AUTO, parse_length, value_of


def model(options: Options, inventory: Inventory) -> Finding:
    """There is such a model, here or on the hub."""
    try:
        found = inventory.found_model()
    except ModelError as error:
        return refused(options.model, error)
    return ok(", ".join((found.name, *_facts(found.config, found.weight_bytes))))


def _facts(config: ModelConfig | None, weight_bytes: int | None) -> list[str]:
    facts = []
    if config is not None:
        kept = config.quantization or config.dtype
        facts += [fact for fact in (config.architecture, kept) if fact]
        facts += [f"up to {config.max_length} tokens"] if config.max_length else []
    return [*facts, f"{gib(weight_bytes)} of weights"] if weight_bytes else facts


def hub(options: Options, inventory: Inventory) -> Finding | None:
    """A model that is not here is downloaded by the first worker, if the hub hands it out."""
    found = inventory.found_model()
    if found.source in ("directory", "file", "store") or not options.workers:
        return None
    fetch = f"vllm-stack fetch {found.name}" + (f" --revision {options.revision}" if options.revision else "")
    at = f" at commit {found.commit[:12]}" if found.commit else ""
    if found.source == "cache":
        if found.incomplete and (variable := offline()):
            return refused(
                f"partly here{at}",
                HubError(
                    f"A download of {found.name} was broken off, and {variable} forbids to go on with it: "
                    f"unset it, and run {fetch}"
                ),
            )
        if found.incomplete:
            return warning(
                f"partly here{at}", f"A download of {found.name} was broken off: {fetch} completes it"
            )
        return ok(f"here{at}")
    if found.source == "hub":
        size = f", {gib(found.download_bytes)} to download" if found.download_bytes else ""
        return ok(f"on the hub{at}{size}; `{fetch}` does it before the first start")
    way = "" if uses_modelscope() else f" ({fetch} gets it)"
    return warning(
        "not on this machine",
        f"{found.hub_trouble or 'The hub was not asked'}, so {found.name} is taken on trust: its heads, "
        f"size and type are left to vLLM{way}",
    )


def heads(options: Options, inventory: Inventory) -> Finding | None:
    """The attention heads are shared evenly by the GPUs of a worker."""
    config, size = inventory.found_model().config, options.tensor_parallel_size
    if config is None or config.attention_heads is None or not options.workers:
        return None
    if config_is_overridden(options.vllm_args):
        return ok("left to vLLM, which is given another config")
    kv = f", {config.kv_heads} KV heads" if config.kv_heads else ""
    value = f"{config.attention_heads} attention heads{kv}, {size} GPU{'s' if size > 1 else ''} a worker"
    refusal = heads_refusal(config, size)
    if refusal is not None:
        return refused(value, ModelError(refusal))
    note = kv_replication(config, size)
    return ok(value) if note is None else warning(value, note)


def context(options: Options, inventory: Inventory) -> Finding | None:
    """A longer context than the model was made for is refused by vLLM (vllm/config/model.py, at its end)."""
    config = inventory.found_model().config
    text = value_of(options.vllm_args, "--max-model-len")
    if text is None or config is None or config.max_length is None:
        return None
    if config_is_overridden(options.vllm_args):
        return None
    try:
        length = parse_length(text)
    except StackError as error:
        return refused(text, error)
    value = "auto" if length == AUTO else f"{length} of {config.max_length} tokens"
    if length <= config.max_length or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
        return ok(value)
    # Not a refusal: models with longrope may go up to what rope was scaled to, which is not told apart here.
    return warning(
        value,
        f"--max-model-len {text} is longer than the {config.max_length} tokens of the model, which vLLM "
        "refuses unless VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 is set",
    )


def gpu_memory(options: Options, inventory: Inventory) -> Finding | None:
    """Weights, and the KV cache of one request of the full length, fit into the GPUs of a worker."""
    config = inventory.found_model().config
    memories = [one.memory for one in slices_or_none(options, inventory) if one.memory]
    if config is None or not memories or options.on_cpu:
        return None
    try:
        demand = demand_of(options, min(memories), most_gpus(options, inventory))
    except StackError as error:
        return refused(" ".join(options.vllm_args), error)
    fit = estimate(config, demand)
    if fit.verdict == "too-big":
        return refused(
            f"{gib(fit.least)} of {gib(fit.budget)} a GPU",
            ModelError(f"{_name(inventory)}: {fit.sentence()}{on_more_boxes(config, demand, options)}"),
        )
    value = f"about {gib(fit.total)} of {gib(fit.budget)} a GPU"
    terms = " + ".join(f"{term.name} {gib(term.bytes)}" for term in fit.terms if term.bytes)
    if fit.verdict == "tight":
        return warning(value, f"{_name(inventory)}: {fit.sentence()}")
    return ok(f"{value} ({terms})" + "".join(f"; {unknown}" for unknown in fit.unknowns))


def dtype(options: Options, inventory: Inventory) -> Finding | None:
    """The GPUs compute the type and the quantization of the model."""
    config, gpus = inventory.found_model().config, _gpus(options, inventory)
    if config is None or not gpus or config_is_overridden(options.vllm_args):
        return None
    weakest = min(gpus, key=lambda gpu: gpu.capability or (99, 0))
    asked = value_of(options.vllm_args, "--dtype")
    quantization = value_of(options.vllm_args, "--quantization", "-q")
    kept = quantization or config.quantization or asked or config.dtype or "type unknown"
    capability = ".".join(map(str, weakest.capability or ())) or "unknown"
    value = f"{kept} on compute capability {capability}"
    refusal = dtype_refusal(
        config, asked, weakest.capability, weakest.name, quantization
    ) or quantization_refusal(config, weakest.capability, weakest.name, quantization)
    if refusal is not None:
        return refused(value, ModelError(refusal))
    note = dtype_warning(config, asked, weakest.capability, weakest.name)
    return ok(value) if note is None else warning(value, note)


def _gpus(options: Options, inventory: Inventory) -> tuple[Gpu, ...]:
    """Give the GPUs that the workers get, as far as they are known."""
    if options.on_cpu:
        return ()
    return tuple(gpu for one in slices_or_none(options, inventory) for gpu in one.gpus)


def _name(inventory: Inventory) -> str:
    return inventory.found_model().name
