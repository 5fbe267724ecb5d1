"""The known causes of a server's end: what shows each of them, and what is said of it.

The texts are those of vLLM 0.32, PyTorch 2.13, huggingface_hub 2.4 and NCCL 2.27. `vllm_stack.worker.cause`
says which lines may decide at all.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

STARTING, READY, STOPPING = "starting", "ready", "stopping"
_ANY_PHASE = frozenset({STARTING, READY, STOPPING})
_AT_START = frozenset({STARTING})
_UNASKED = frozenset({STARTING, READY})
OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
# vLLM's record of having been told to stop, which it logs as INFO.
_TOLD_TO_STOP = r"\[shutdown\] API server: shutdown triggered"
_ENGINE_DIED = (
    r"(?:[\w.]+\.)?EngineDeadError: EngineCore encountered an issue",
    r"RuntimeError: Engine core process \S+ died unexpectedly",
    r"\[shutdown\] MPClient: engine core exited unexpectedly",
)
# What a server says of its own end: it decides at any level and in any phase.
LAST_WORDS = re.compile("|".join((_TOLD_TO_STOP, *_ENGINE_DIED)))
# The name of the exception, pydantic's or C++'s word for it, and vLLM's for that of a worker.
_RAISED = (
    r"(?:\[rank\d+\]: ?)?\s*(?:[A-Za-z_][\w.]*(?:Error|Exception)\w*: |Value error, |what\(\): +)"
    r"(?:Worker failed with error ['\"])?"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One known cause: what shows it, and what is said of it.

    All that is given must hold: a line that `pattern` matches from its beginning, one of the return
    codes `ends` (of the server, or of a process of it that the output names), one of the `phases`,
    and an OOM kill if `oom`. `sentence` may name the groups of `pattern` and what `cause` knows of the
    server: model, model_name, address, oom_kills, signal, victim.
    """

    name: str
    sentence: str
    pattern: re.Pattern[str] | None = None
    ends: frozenset[int] = frozenset()
    phases: frozenset[str] = _ANY_PHASE
    oom: bool = False


def _raised(*texts: str) -> re.Pattern[str]:
    """Match an exception whose message begins with one of `texts`."""
    return re.compile(f"{_RAISED}(?:{'|'.join(texts)})")


def _said(*texts: str) -> re.Pattern[str]:
    """Match a line that begins with one of `texts`."""
    return re.compile("|".join(texts))


def _hub(*texts: str) -> re.Pattern[str]:
    """Match an exception of huggingface_hub by its name, or a line of its message."""
    return re.compile(rf"(?:[\w.]+\.)?(?:{'|'.join(texts)})")


_RULES_OF_COMMAND_LINE = (
    Rule(
        "unknown option",
        "vLLM does not know the option {option}: correct it behind -- (`vllm serve --help=all` lists them)",
        _said(
            r"[\w./-]{1,60}(?: serve)?: error: unrecognized arguments: (?:[^-]\S* )*(?P<option>-[^\s=]{1,80})"
        ),
        phases=_AT_START,
    ),
    Rule(
        "bad value of an option",
        "vLLM does not take the value given for {option} ({what}): correct it behind --",
        _said(r"[\w./-]{1,60}(?: serve)?: error: argument (?P<option>[^:]{1,120}): (?P<what>[^\n]{1,300})"),
        phases=_AT_START,
    ),
    Rule(
        "bad command line",
        "vLLM does not accept its command line ({what}): correct what stands behind --",
        _said(r"vllm(?: serve)?: error: (?!unrecognized)(?P<what>[^\n]{1,300})"),
        phases=_AT_START,
    ),
)

# What the hub said comes before what vLLM made of it.
_RULES_OF_MODEL = (
    Rule(
        "gated model",
        "{model} is gated and this machine may not read it: ask for access on its page at the hub, and set "
        "HF_TOKEN to a token of that account",
        _hub("GatedRepoError: ", "OSError: You are trying to access a gated repo"),
        phases=_AT_START,
    ),
    Rule(
        "no such revision",
        "{model} has no revision {revision}: give --revision a branch, a tag or a commit that its page at "
        "the hub shows",
        _raised(r"(?P<revision>\S{1,100}) is not a valid git identifier"),
        phases=_AT_START,
    ),
    Rule(
        "no such revision, unnamed",
        "{model} has no such revision: give --revision a branch, a tag or a commit that its page at the hub "
        "shows",
        _hub("RevisionNotFoundError: "),
        phases=_AT_START,
    ),
    Rule(
        "no such model on the hub",
        "the hub has no {model_name}, or does not show it to this machine: check the name; a private or "
        "gated model needs HF_TOKEN",
        _hub(
            "RepositoryNotFoundError: ", r"OSError: \S{1,200} is not a local folder and is not a valid model"
        ),
        phases=_AT_START,
    ),
    Rule(
        "the hub refuses",
        "the hub refuses to give {model} to this machine (status {status}): set HF_TOKEN to a token that "
        "may read it",
        _hub(
            r"HfHubHTTPError: (?:Client error ')?(?P<status>40[13])\b", r"(?P<forbidden>40[13]) Forbidden: "
        ),
        phases=_AT_START,
    ),
    Rule(
        "the hub asks for patience",
        "the hub refuses further downloads for now (status 429): wait some minutes, or set HF_TOKEN, which "
        "raises the limit",
        _hub(r"HfHubHTTPError: 429 Too Many Requests"),
        phases=_AT_START,
    ),
    Rule(
        "not cached and offline",
        "{model} is not in this machine's cache and the hub must not be asked (HF_HUB_OFFLINE): download it "
        "first, or unset HF_HUB_OFFLINE",
        _hub(
            "LocalEntryNotFoundError: [^\n]{0,200}outgoing traffic has been disabled",
            "OfflineModeIsEnabled: ",
        ),
        phases=_AT_START,
    ),
    Rule(
        "no network",
        "the hub could not be reached and {model} is not in this machine's cache: check the network and the "
        "proxy settings (HTTPS_PROXY), or give a directory that has the model",
        _hub("LocalEntryNotFoundError: ", "OSError: We couldn't connect to '"),
        phases=_AT_START,
    ),
    Rule(
        "no such directory",
        "there is no model directory {path}, and a name on the hub looks otherwise: correct the path",
        _raised(r"Repo id must [^:]{0,200}: '(?P<path>[^'\n]{1,300})'"),
        phases=_AT_START,
    ),
    Rule(
        "no model in the directory",
        "{path} is no model that vLLM can read, as it has neither config.json nor params.json: give the "
        "directory they are in",
        _raised(r"Invalid repository ID or local directory specified: '(?P<path>[^'\n]{1,300})'"),
        phases=_AT_START,
    ),
    Rule(
        "no weights",
        "{path} has no weights that vLLM can read: see whether its download was complete (*.safetensors)",
        _raised(r"Cannot find any model weights with `(?P<path>[^`\n]{1,300})`"),
        phases=_AT_START,
    ),
    Rule(
        "damaged weights",
        "a weights file of {model} is damaged or was not downloaded whole: remove it and download it again",
        _hub("SafetensorError: Error while deserializing header"),
        phases=_AT_START,
    ),
    Rule(
        "code of its own",
        "{model} brings Python code of its own, which vLLM runs only if it is told to: if you trust it, add "
        "--trust-remote-code behind --",
        _raised(
            r"The repository \S{1,300} contains custom code which must be executed",
            r"Failed to load the model config\. If the model is a custom model",
            r"Loading \S{1,300} requires you to execute",
        ),
        phases=_AT_START,
    ),
    Rule(
        "unsupported architecture",
        "this version of vLLM does not support the architecture {architecture}: take a newer vLLM or "
        "another model",
        _raised(
            r"Model architectures \['(?P<architecture>\w{1,100})'[^\]]{0,200}\] "
            r"(?:are not supported|failed to be inspected)",
        ),
        phases=_AT_START,
    ),
    Rule(
        "architecture given up",
        "this version of vLLM does not support the architecture {architecture} any more: take an older "
        "vLLM, the plugin for it, or another model",
        _raised(
            r"Model architecture (?P<architecture>\w{1,100}) "
            r"(?:was supported in vLLM until|is not supported in-tree)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "unknown model type",
        "this version of transformers does not know the model type {type}: update vLLM and transformers, or "
        "take another model",
        _raised(r"The checkpoint you are trying to load has model type `(?P<type>[^`\n]{1,100})`"),
        phases=_AT_START,
    ),
)

_RULES_OF_OPTIONS = (
    Rule(
        "heads do not divide",
        "the model's {heads} attention heads cannot be divided among {size} GPUs: choose a "
        "--tensor-parallel-size that divides {heads}",
        _raised(
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<size>\d+)\)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "longer than the model",
        "--max-model-len {asked} is more than the {length} tokens the model was made for: give at most "
        "{length}",
        _raised(
            r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len "
            r"\(\w+=(?P<length>\d+)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "bfloat16 on an old GPU",
        "this GPU ({gpu}) does not know bfloat16: add --dtype half behind --",
        _raised(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\. "
            r"Your (?P<gpu>[^\n]{1,100}?) GPU "
        ),
        phases=_AT_START,
    ),
)

_RULES_OF_MEMORY = (
    Rule(
        "memory taken by others",
        "only {free} of {device}'s {total} GiB were free, and {wanted} GiB were asked for: end what else "
        "uses it, or lower --gpu-memory-utilization (now {share})",
        _raised(
            r"(?:Free|Available) memory on (?:device )?(?P<device>[\w:]+(?: \d+)?) "
            r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less than [^\n(]{0,80}"
            r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "room for shorter requests",
        "a request of {length} tokens needs {needed} GiB of KV cache and {free} GiB are free: give "
        "--max-model-len {most} or less, or raise --gpu-memory-utilization",
        _raised(
            r"To serve at least one request with the model's max seq len \((?P<length>\d+)\), "
            r"\((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache "
            r"memory \((?P<free>[\d.]+) GiB\)\. Based on the available memory, the estimated maximum model "
            r"length is (?P<most>\d+)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "no room for one request",
        "a request of {length} tokens needs {needed} GiB of KV cache and {free} GiB are free: lower "
        "--max-model-len, or raise --gpu-memory-utilization",
        _raised(
            r"To serve at least one request with the model's max seq len \((?P<length>\d+)\), "
            r"\((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the available KV cache "
            r"memory \((?P<free>[\d.]+) GiB\)"
        ),
        phases=_AT_START,
    ),
    Rule(
        "no room for the KV cache",
        "the model leaves no memory for the KV cache: raise --gpu-memory-utilization, use more GPUs a "
        "worker (--tensor-parallel-size), or take a smaller or quantised model",
        _raised(r"No available memory for the cache blocks"),
        phases=_AT_START,
    ),
    Rule(
        "KV cache larger than the memory",
        "a KV cache of {asked} GiB was asked for and only {free} GiB of {device} were free: lower "
        "VLLM_CPU_KVCACHE_SPACE or --kv-cache-memory-bytes, or end what else uses the memory",
        _raised(
            r"Available memory on (?P<device>node \d+) \((?P<free>[\d.]+)/[\d.]+ GiB\) on kv cache "
            r"allocation is less than requested memory for kv \((?P<asked>[\d.]+)[/ ]"
        ),
        phases=_AT_START,
    ),
    Rule(
        "GPU memory full",
        "the worker's GPU {gpu} ran out of memory: {size} more were wanted and {free} of {total} were free: "
        "lower --gpu-memory-utilization, --max-num-seqs or --max-model-len, or use more GPUs a worker",
        _raised(
            r"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<size>[\d.]+ \wi?B)\. GPU (?P<gpu>\d+) has a "
            r"total capacity of (?P<total>[\d.]+ \wi?B) of which (?P<free>[\d.]+ (?:\wi?B|bytes)) is free"
        ),
    ),
    Rule(
        "GPU memory full, no figures",
        "a GPU ran out of memory: lower --gpu-memory-utilization, --max-num-seqs or --max-model-len, or use "
        "more GPUs a worker",
        _raised(r"(?:CUDA|HIP) out of memory", r"CUDA error: out of memory"),
    ),
)

_RULES_OF_HOST = (
    Rule(
        "shared memory too small",
        "shared memory (/dev/shm) has {free} free and vLLM needs {needed}: free it, or make it larger "
        "(`mount -o remount,size=16G /dev/shm`)",
        _raised(
            r"Insufficient space in /dev/shm for [^:\n]{1,80}: (?P<needed>\d+ \wiB) required, "
            r"(?P<free>\d+ \wiB) free"
        ),
        phases=_AT_START,
    ),
    Rule(
        "shared memory full",
        "shared memory (/dev/shm) is full: free it, or make it larger (`mount -o remount,size=16G /dev/shm`)",
        _said(
            rf"{_RAISED}[^\n]{{0,80}}No space left on device: '/?(?:dev/shm/|psm_)",
            rf"{_RAISED}(?:unable to write to file|unable to allocate shared memory)[^\n]{{0,40}}</torch_",
            r"(?:\[[^\]\n]{1,40}\] )?\S{1,120} \[\d+\] \S{1,80} NCCL WARN Error[^\n]{0,60} /dev/shm/"
            r"[^\n]{0,80}No space left on device",
        ),
    ),
    Rule(
        "disk full",
        "a disk is full ({what}): free some space; models are in ~/.cache/huggingface unless HF_HOME says "
        "where, compiled code is in ~/.cache/vllm",
        _said(
            rf"{_RAISED}(?:\[Errno \d+\] |Data processing error: [^\n]{{0,120}}?|Error while [^\n]{{0,80}}?)?"
            r"(?P<what>(?:No space left on device|Disk quota exceeded|No usable temporary directory found)"
            r"[^\n]{0,200})"
        ),
    ),
    Rule(
        "host memory refused",
        "the host had no memory left to give: run fewer workers, take a smaller model, or lift the limit on "
        "this service (ulimit -v, MemoryMax)",
        _said(
            rf"{_RAISED}\[Errno 12\] Cannot allocate memory",
            rf"{_RAISED}[^\n]{{0,200}}DefaultCPUAllocator: (?:can't|not enough)",
            r"MemoryError\b",
            r"numpy\._core\._exceptions\._ArrayMemoryError: ",
            r"\s*what\(\):\s+std::bad_alloc",
        ),
    ),
    Rule(
        "address in use",
        "{address} is in use by another program: end that one (`ss -ltnp` shows it), or render with another "
        "--base-port",
        _said(
            r"OSError: \[Errno 98\] Address already in use",
            r"\[Errno 98\] error while attempting to bind on address",
        ),
        phases=_AT_START,
    ),
    Rule(
        "inner port in use",
        "port {port}, which vLLM's processes talk over, is in use by another program: start it again, and "
        "it will choose another, unless --master-port, VLLM_PORT or the like fixes it",
        _raised(
            r"The server socket has failed to listen on any local network address\. "
            r"[^\n]{0,40}port: (?P<port>\d+)"
        ),
        phases=_AT_START,
    ),
)

_OOM_SENTENCE = (
    "the host ran out of memory and the kernel's OOM killer struck (processes killed meanwhile: "
    "{oom_kills}): run fewer workers, take a smaller model or KV cache, or add memory"
)

_RULES_OF_GPU = (
    Rule(
        "no GPU seen",
        "vLLM sees no GPU: see whether nvidia-smi lists them, and whether CUDA_VISIBLE_DEVICES names some "
        "that exist",
        _raised(
            r"No CUDA GPUs are available",
            r"Failed to infer device type",
            r"Found no NVIDIA driver on your system",
            r"CUDA error: (?:no CUDA-capable device is detected|invalid device ordinal)",
        ),
        phases=_AT_START,
    ),
    Rule(
        "driver too old",
        "the NVIDIA driver is too old for this build of vLLM: update the driver, or install a vLLM built "
        "for an older CUDA",
        _raised(
            r"The NVIDIA driver on your system is too old",
            r"CUDA error: CUDA driver version is insufficient",
            r"CUDA error: the provided PTX was compiled with an unsupported toolchain",
        ),
        phases=_AT_START,
    ),
    Rule(
        "GPU not in this build",
        "this build of vLLM has no code for this GPU: install one that supports its compute capability",
        _raised(r"CUDA error: no kernel image is available"),
    ),
    Rule(
        "fabric manager",
        "the GPUs are not ready (error 802): start nvidia-fabricmanager, in the version of the driver",
        _raised(
            r"[^\n]{0,200}Error 802: system not yet initialized", r"CUDA error: system not yet initialized"
        ),
        phases=_AT_START,
    ),
    Rule(
        "GPU memory broken",
        "a GPU met a memory error that it could not correct: look for Xid in the kernel's log (dmesg), "
        "reset the GPU or restart the machine, and have it replaced if it comes again",
        _raised(r"CUDA error: uncorrectable (?:ECC|NVLink) error", r"CUDA error: hardware stack error"),
    ),
    Rule(
        "GPU lost",
        "a GPU is lost (it has fallen off the bus, or its driver does not answer): look for Xid in the "
        "kernel's log (dmesg) and restart the machine; check its power, heat and seat if it comes again",
        _raised(
            r"GPU is lost",
            r"CUDA error: (?:unknown error|the device is unavailable|GPU (?:is lost|has fallen off the bus))",
            r"[^\n]{0,80}GPU has fallen off the bus",
        ),
    ),
    Rule(
        "CUDA error",
        "a CUDA error ended it ({what}): look for Xid in the kernel's log (dmesg); if there is none, it is "
        "a bug in a kernel, and --enforce-eager or another attention backend may avoid it",
        _raised(r"CUDA error: (?P<what>[^\n]{1,120}?)(?:\. |['\"]|$)"),
    ),
    Rule(
        "OOM kill",
        _OOM_SENTENCE,
        ends=frozenset({-signal.SIGKILL}),
        oom=True,
    ),
    Rule(
        "OOM kill of the engine",
        _OOM_SENTENCE,
        _said(*_ENGINE_DIED, r"RuntimeError: Engine core initialization failed"),
        oom=True,
    ),
    Rule(
        "collective timed out",
        "the GPUs of the worker waited for each other in vain (NCCL timeout): another of its processes hung "
        "or died first; look for Xid in the kernel's log (dmesg), and try NCCL_P2P_DISABLE=1",
        _said(
            r"\[rank\d+\]:\[E[^\]\n]{1,80}\] \[[^\]\n]{1,60}\] Watchdog caught collective operation timeout"
        ),
    ),
    Rule(
        "NCCL error",
        "the GPUs of the worker could not talk to each other (NCCL: {what}): set NCCL_DEBUG=INFO to see "
        "why; a small /dev/shm and broken peer-to-peer (NCCL_P2P_DISABLE=1) are usual",
        _raised(
            r"NCCL error(?: in: [^,\n]{1,200},(?: \w+ \w+,)?|:) ?(?P<what>[^\n,(]{1,80}?)(?: \(|,|['\"]|$)"
        ),
    ),
)

# Only where nothing above says why.
_RULES_OF_LAST_RESORT = (
    Rule(
        "other bad option",
        "vLLM does not accept its options or the model ({what}): correct what stands behind --, or the "
        "model's config.json",
        re.compile(r"\s*(?:Value error|Assertion failed), (?P<what>[^\n\[]{1,300}?)(?: \[type=|\s*$)"),
        phases=_AT_START,
    ),
    Rule(
        "bad configuration",
        "vLLM does not accept what its options make of {config}: see the lines below `validation error` in "
        "the log, and correct what stands behind --",
        _said(r"(?:[\w.]+\.)?ValidationError: \d+ validation errors? for (?P<config>\w{1,100})"),
        phases=_AT_START,
    ),
    Rule(
        "illegal instruction",
        "{victim} met an instruction that this CPU does not have (SIGILL): install a build of vLLM and "
        "PyTorch for this CPU (vLLM's CPU build needs AVX2)",
        ends=frozenset({-signal.SIGILL}),
    ),
    Rule(
        "bus error",
        "{victim} met a bus error (SIGBUS), which is what a full /dev/shm or a truncated model file does: "
        "see `df -h /dev/shm`, and download the model again if there is room",
        ends=frozenset({-signal.SIGBUS}),
    ),
    Rule(
        "segmentation fault",
        "{victim} met a segmentation fault in native code (SIGSEGV), a bug of vLLM, a library or a driver: "
        "if it comes again, try --enforce-eager or another version of vLLM",
        ends=frozenset({-signal.SIGSEGV}),
    ),
    Rule(
        "killed",
        "{victim} was killed from outside with SIGKILL, and the kernel counted no OOM kill: look who did it "
        "(a person, a batch system, a container's limit)",
        ends=frozenset({-signal.SIGKILL}),
        phases=_UNASKED,
    ),
    Rule(
        "signalled",
        "it was ended from outside with {signal}: look who did it (a person, a batch system, a shutdown)",
        ends=frozenset(-number for number in OUTSIDE - {signal.SIGKILL}),
        phases=_UNASKED,
    ),
    Rule(
        "told to stop",
        "it was told to stop from outside (SIGTERM or SIGINT) and did: look who did it (a person, a batch "
        "system, a shutdown)",
        _said(_TOLD_TO_STOP),
        phases=_UNASKED,
    ),
    Rule(
        "engine died",
        "its engine died while it served and left no reason: look at the engine's last lines in the log, "
        "and at the kernel's log (dmesg) for OOM kills and Xid",
        _said(
            *_ENGINE_DIED,
            r"EngineCore encountered a fatal error",
            r"Worker proc \S+ died unexpectedly",
        ),
    ),
    Rule(
        "engine died unsaid",
        "it ended with exit code 0 though nobody told it to, as vLLM does when its engine has died "
        "(vllm#48966): look at the engine's last lines in the log",
        ends=frozenset({0}),
        phases=frozenset({READY}),
    ),
    Rule(
        "engine did not start",
        "its engine failed to start for a reason not known here: see the lines above `Engine core "
        "initialization failed`, and the kernel's log (dmesg) for OOM kills and Xid",
        _raised(r"Engine core initialization failed", r"WorkerProc initialization failed"),
        phases=_AT_START,
    ),
)

# What vllm_stack.ray.conductor says of its own end. It knows what Ray told it; a replica's last words, which
# are in the same log, tell more where one of the rules above knows them.
_RULES_OF_RAY = (
    Rule(
        "other versions than the cluster",
        "this box's Ray, or its Python, is not that of the cluster: install the same versions on every box",
        _raised(r"Version mismatch: The cluster was started with"),
        phases=_AT_START,
    ),
    Rule(
        "ray cannot go on",
        "{why}",
        _said(r"\S{1,10} \S{1,8} vllm-stack ray: cannot go on: (?P<why>[^\n]{1,700})"),
    ),
)

# What they are about, in the order in which they are asked: causes before effects, the special before the
# general.
GROUPS: Mapping[str, tuple[Rule, ...]] = {
    "The command line": _RULES_OF_COMMAND_LINE,
    "Memory": _RULES_OF_MEMORY,
    "The machine": _RULES_OF_HOST,
    "The model": _RULES_OF_MODEL,
    "Options that do not go together": _RULES_OF_OPTIONS,
    "GPUs": _RULES_OF_GPU,
    "Ray": _RULES_OF_RAY,
    "Where nothing else says why": _RULES_OF_LAST_RESORT,
}
RULES: tuple[Rule, ...] = tuple(chain.from_iterable(GROUPS.values()))
