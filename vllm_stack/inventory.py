"""What the machine has, read once: GPUs, cores, memory, ports, the model's files, the vLLM program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from vllm_stack.errors import ModelError, OutputError, PortError, StackError, VllmCommandError
from vllm_stack.gpus.amd_mask import HIP_MASK, ROCR_MASK, left_by_rocr
from vllm_stack.gpus.box import GpuBox
from vllm_stack.gpus.driver import read_box
from vllm_stack.gpus.mask import MASK
from vllm_stack.held_ports import ports_of_running_stack
from vllm_stack.keys.store import KeyPaths, present_keys
from vllm_stack.layout import Layout
from vllm_stack.machine import Machine, free_bytes, interface_of, read_machine
from vllm_stack.model.find import Model, read_model
from vllm_stack.model.hub_cache import cache_directory
from vllm_stack.options import Options
from vllm_stack.out_directory import check_out
from vllm_stack.passthrough import accept
from vllm_stack.ports import check_free, port_uses
from vllm_stack.ray.engine_kwargs import EngineKwargs, python_of, read_engine_kwargs
from vllm_stack.ray.installed import Ray, find_ray
from vllm_stack.service import Service, read_service
from vllm_stack.vllm_arguments import value_of
from vllm_stack.vllm_command import VllmCommand, find_vllm
from vllm_stack.vllm_options.known import read_options


@dataclass(frozen=True, slots=True)
class Inventory:
    """Facts about one model, and about the machine, that a plan is made from.

    What could not be found is the error that says so: a user should hear first of what matters most.
    """

    model: Model | ModelError
    vllm: VllmCommand | VllmCommandError
    # The options of that vLLM; None where nobody tells them, or none are to be checked.
    vllm_options: frozenset[str] | None
    # Those of AMD as HIP numbers them: without what ROCR_VISIBLE_DEVICES hides.
    gpus: GpuBox
    # The variables that say which GPUs may be used, as far as they are set.
    gpu_masks: Mapping[str, str]
    machine: Machine
    # Why --out cannot be a stack's directory.
    out: OutputError | None
    python: Path
    root: bool
    # Why one of the stack's ports cannot be had.
    ports: PortError | None = None
    tls_warning: str | None = None
    # Bytes free where the hub's cache is, if the model has to be downloaded.
    model_disk_free: int | None = None
    # What a systemd unit has to say, if one is asked for.
    service: Service | None = None
    # Whether named keys were made for the stack that is in --out.
    named_keys: bool = False
    # The Ray beside that vLLM, and what the words after `--` mean as arguments of its engine; None where
    # Ray does not run the workers.
    ray: Ray | StackError | None = None
    engine_kwargs: EngineKwargs | StackError | None = None
    # The network's interface by which other boxes of a Ray cluster reach this one.
    gloo_interface: str | None = None
    # What other models of the stack have of the GPUs, by `Slice.identities`.
    reserved: frozenset[str] = frozenset()

    @property
    def has_model(self) -> bool:
        return isinstance(self.model, Model)

    def found_model(self) -> Model:
        """Give the model; raises `ModelError` if there is none."""
        if isinstance(self.model, ModelError):
            raise self.model
        return self.model

    def found_vllm(self) -> VllmCommand:
        """Give the vLLM that the workers run; raises `VllmCommandError` if there is none."""
        if isinstance(self.vllm, VllmCommandError):
            raise self.vllm
        return self.vllm

    def found_ray(self) -> Ray:
        """Give the Ray that runs the workers; raises `StackError` if there is none."""
        return _found(self.ray)

    def found_engine_kwargs(self) -> EngineKwargs:
        """Give the arguments of vLLM's engine; raises `StackError` if they could not be read."""
        return _found(self.engine_kwargs)


_Found = TypeVar("_Found")


def _found(what: _Found | StackError | None) -> _Found:
    if isinstance(what, StackError):
        raise what
    assert what is not None  # noqa: S101 - asked only of a stack that Ray runs
    return what


def take_inventory(models: Sequence[Options], say: Callable[[str], object]) -> tuple[Inventory, ...]:
    """Read everything that the plan and the checks of each model need; `say` is told of what takes long.

    Not the ports: which those are is known when all workers are counted.
    """
    stack = models[0]
    vllm = _find_vllm(stack.vllm_command)
    computes = not stack.on_cpu and any(one.workers for one in models)
    machine = _machine(stack, vllm, _vllm_options(models, vllm, say), computes)
    return tuple(_with_model(machine, one, say) for one in models)


def take_machine(options: Options) -> Inventory:
    """Read what a box needs that loads no model by itself, but joins a Ray cluster."""
    return _machine(options, _find_vllm(options.vllm_command), None, not options.on_cpu)


def _machine(
    stack: Options,
    vllm: VllmCommand | VllmCommandError,
    vllm_options: frozenset[str] | None,
    computes: bool,
) -> Inventory:
    """Read what all models share; GPUs only where something `computes` on them."""
    masks = {name: os.environ[name] for name in (ROCR_MASK, HIP_MASK, MASK) if name in os.environ}
    machine = Inventory(
        model=ModelError("No model was looked for"),
        vllm=vllm,
        vllm_options=vllm_options,
        gpus=left_by_rocr(masks, read_box()) if computes else GpuBox(()),
        gpu_masks=masks,
        machine=read_machine(Layout.at(stack.out).out),
        out=(out_trouble := _out_trouble(stack)),
        python=Path(sys.executable),
        root=os.geteuid() == 0,
        tls_warning=_tls_warning(stack),
        named_keys=out_trouble is None and _has_named_keys(Layout.at(stack.out)),
        service=read_service(Layout.at(stack.out).environment) if stack.systemd else None,
    )
    if stack.on_ray:
        ray = _or_error(lambda: find_ray(Path(machine.found_vllm().argv[0]), machine.found_vllm().argv))
        machine = replace(machine, ray=ray, gloo_interface=interface_of(stack.ray_host))
    return machine


def _or_error(look: Callable[[], _Found]) -> _Found | StackError:
    try:
        return look()
    except StackError as error:
        return error


def _with_model(machine: Inventory, options: Options, say: Callable[[str], object]) -> Inventory:
    if options.on_ray:
        machine = replace(machine, engine_kwargs=_or_error(lambda: _engine_kwargs(machine, options, say)))
    model = _find_model(options)
    return replace(machine, model=model, model_disk_free=_model_disk_free(options, model))


def _find_model(options: Options) -> Model | ModelError:
    try:
        # A pure balancer loads no model: what its name means is the business of others.
        ask = "hub" not in options.skip_checks and options.workers > 0
        elsewhere = value_of(options.vllm_args, "--hf-config-path") is not None
        return read_model(options.model, options.revision, ask, needs_config=not elsewhere)
    except ModelError as error:
        return error


def _model_disk_free(options: Options, model: Model | ModelError) -> int | None:
    """Look where vLLM would download the model to, unless it is told to load other weights."""
    if isinstance(model, ModelError) or model.download_bytes is None:
        return None
    if value_of(options.vllm_args, "--load-format") not in (None, "auto", "safetensors", "hf"):
        return None
    return free_bytes(Path(value_of(options.vllm_args, "--download-dir") or cache_directory()))


def _out_trouble(options: Options) -> OutputError | None:
    try:
        check_out(Layout.at(options.out))
    except OutputError as error:
        return error
    return None


def _find_vllm(command: str) -> VllmCommand | VllmCommandError:
    try:
        return find_vllm(command)
    except VllmCommandError as error:
        return error


def _vllm_options(
    models: Sequence[Options], vllm: VllmCommand | VllmCommandError, say: Callable[[str], object]
) -> frozenset[str] | None:
    """Ask for vLLM's options only if one of them was passed on: it may take half a minute."""
    if isinstance(vllm, VllmCommandError) or "vllm-options" in models[0].skip_checks:
        return None
    if not any(word.startswith("-") for one in models if one.workers for word in one.vllm_args):
        return None
    return read_options(Path(vllm.argv[0]), vllm.argv, vllm.version, say)


def _engine_kwargs(machine: Inventory, options: Options, say: Callable[[str], object]) -> EngineKwargs:
    """Ask vLLM's own parser, if anything was passed on and there is a Ray to tell it."""
    args = accept(options.vllm_args)
    if not isinstance(machine.ray, Ray):
        return EngineKwargs()  # and nobody waits to hear that there is none
    if args:
        say("Asking vLLM what its options mean to its engine (this can take half a minute)")
    return read_engine_kwargs(python_of(Path(machine.found_vllm().argv[0])), args)


def taken_port(models: Sequence[Options]) -> PortError | None:
    """Look for a port that somebody else holds; those of this very stack, if it runs, are its own."""
    own = ports_of_running_stack(Layout.at(models[0].out))
    try:
        check_free(use for use in port_uses(models) if use.port not in own)
    except PortError as error:
        return error
    return None


def _has_named_keys(layout: Layout) -> bool:
    """Tell whether the proxy will ask for named keys; raises `StackError` for a file it could not read."""
    named = KeyPaths(layout.named_keys)
    present_keys(named)
    return named.in_use


def _tls_warning(options: Options) -> str | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    from vllm_stack.tls_files import TlsFiles, expiry_warning  # loads OpenSSL, which few stacks need

    return expiry_warning(TlsFiles(options.tls_cert, options.tls_key))
